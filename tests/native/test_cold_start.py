"""Protects the cold start: loading a native family and generating imports nothing that costs seconds."""

import subprocess
import sys
from pathlib import Path

HEAVY = {
    "transformers", "peft", "accelerate", "datasets", "pandas", "scipy", "sklearn", "sympy", "matplotlib", "fastapi",
    "triton", "bitsandbytes", "compressed_tensors", "torch._dynamo", "torch._inductor", "torchvision",
}  # fmt: skip


def modules_of(code: str, *arguments: str) -> set[str]:
    command = [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)", *arguments]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stderr.split())


def test_generate_imports_nothing_heavy(talker: Path) -> None:
    code = "from typer.testing import CliRunner\nfrom tuneserve.cli import app\n"
    code += "assert CliRunner().invoke(app, sys.argv[1:]).exit_code == 0"
    found = modules_of(code, "generate", str(talker), "the cat", "--raw", "--max-tokens", "4")
    assert "torch" in found
    assert not found & HEAVY


def test_the_engines_process_imports_nothing_heavy(talker: Path) -> None:
    code = (
        "import tuneserve.native.server\nfrom tuneserve.native import EngineConfig, NativeCore\n"
        "from tuneserve.engines.contract import GenerationRequest, SamplingParams\n"
        "core = NativeCore(EngineConfig(model_dir=sys.argv[1], tokenizer_dir=sys.argv[1]))\n"
        "core.add(GenerationRequest(id='a', prompt_ids=[5, 6], params=SamplingParams(max_tokens=2, logprobs=1)))\n"
        "while not core.idle: core.step()"
    )
    found = modules_of(code, str(talker))
    assert "torch" in found
    assert not found & (HEAVY | {"typer", "rich", "pydantic"})
