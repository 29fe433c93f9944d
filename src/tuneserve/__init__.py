"""Take a fine-tuned language model to production inference."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tuneserve._version import __version__

if TYPE_CHECKING:
    from tuneserve.artifacts import export
    from tuneserve.fast import FastLanguageModel
    from tuneserve.native import LLM
    from tuneserve.parity import verify
    from tuneserve.planner import plan

__all__ = ["LLM", "FastLanguageModel", "__version__", "export", "plan", "verify"]

# Imported when first asked for, because torch takes seconds.
_HOMES = {
    "LLM": "tuneserve.native",
    "FastLanguageModel": "tuneserve.fast",
    "export": "tuneserve.artifacts",
    "verify": "tuneserve.parity",
    "plan": "tuneserve.planner",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
