"""Protects: engines are known by name, and none is imported before it is asked for."""

import subprocess
import sys

import pytest

from tuneserve.engines.registry import ENGINES, find_engine
from tuneserve.errors import InputError


def test_the_registry_imports_no_engine() -> None:
    code = (
        "import sys, tuneserve.engines.registry as registry; list(registry.ENGINES); 'vllm' in registry.ENGINES\n"
        "print(*(name for name in sys.modules if name.startswith('tuneserve.engines.')))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    engines = {"_native_kind", "native", "vllm", "sglang", "llama_cpp", "ollama", "unsloth"}
    assert not {name.rpartition(".")[2] for name in loaded} & engines


def test_engines_are_known_by_name() -> None:
    assert list(ENGINES) == ["native", "vllm", "sglang", "llama.cpp", "ollama", "unsloth"]
    for name in ("native", "sglang", "llama.cpp", "ollama", "unsloth"):
        assert find_engine(name).name == name
    with pytest.raises(InputError, match=r"no engine 'sg-lang'; choose auto or one of sglang"):
        find_engine("sg-lang")
