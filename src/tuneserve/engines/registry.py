"""The engines by name; each is imported when it is asked for."""

import difflib
from collections.abc import Iterator, Mapping
from importlib import import_module

from tuneserve.engines.kind import EngineKind
from tuneserve.errors import InputError

# In the order in which they are tried where none is named.
_KINDS: Mapping[str, tuple[str, str]] = {
    "native": ("tuneserve.engines._native_kind", "Native"),
    "vllm": ("tuneserve.engines.vllm", "Vllm"),
    "sglang": ("tuneserve.engines.sglang", "Sglang"),
    "llama.cpp": ("tuneserve.engines.llama_cpp", "LlamaCpp"),
    "ollama": ("tuneserve.engines.ollama", "Ollama"),
    "unsloth": ("tuneserve.engines.unsloth", "Unsloth"),
}


class _Engines(Mapping[str, EngineKind]):
    def __init__(self, kinds: Mapping[str, tuple[str, str]]) -> None:
        self._kinds = kinds

    def __getitem__(self, name: str) -> EngineKind:
        module, attribute = self._kinds[name]
        kind: EngineKind = getattr(import_module(module), attribute)()
        return kind

    def __contains__(self, name: object) -> bool:
        return name in self._kinds

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)


ENGINES: Mapping[str, EngineKind] = _Engines(_KINDS)


def find_engine(name: str) -> EngineKind:
    """Return the engine called ``name``.

    Raises:
        InputError: there is none.
    """
    if name in ENGINES:
        return ENGINES[name]
    near = difflib.get_close_matches(name, ENGINES, n=3, cutoff=0.4) or list(ENGINES)
    raise InputError(f"there is no engine {name[:40]!r}; choose auto or one of {', '.join(near)}.")
