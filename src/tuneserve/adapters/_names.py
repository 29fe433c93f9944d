"""From the parameters of the model that was trained to the tensors of its checkpoint.

They are mostly called the same. They differ where a checkpoint was saved without its head ("h.0.attn" for
"transformer.h.0.attn"), by another generation of Transformers ("language_model.model.layers" for
"model.language_model.layers"), or where a module was renamed. So paths are compared without the wrappers they begin
with; two tensors that are then called the same are only found by their full names.
"""

from collections.abc import Iterable

_WRAPPERS = frozenset({"gpt_neox", "language_model", "model", "text_model", "transformer"})
_RENAMED = {"block_sparse_moe": "mlp", "embed_out": "lm_head"}


class TensorNames:
    """Finds the tensors of one checkpoint."""

    def __init__(self, tensors: Iterable[str]) -> None:
        self._tensors = frozenset(tensors)
        self._found: dict[str, str | None] = {}
        for name in self._tensors:
            inner = _inner(name)
            self._found[inner] = None if inner in self._found else name
        self._wrappers: dict[str, str] = {}

    def find(self, parameter: str) -> str | None:
        """Return the name of the tensor that holds ``parameter``, None where there is none or no certain one."""
        name = parameter if parameter in self._tensors else self._found.get(_inner(parameter))
        if name is not None:
            self._wrappers.setdefault(_outer(name), _outer(parameter))
        return name

    def parameter(self, name: str) -> str:
        """Return what the trained model calls the tensor ``name``, as far as the parameters found so far tell."""
        outer = _outer(name)
        return self._wrappers.get(outer, outer) + name[len(outer) :]


def _outer(name: str) -> str:
    outer = ""
    for part in name.split("."):
        if part not in _WRAPPERS:
            break
        outer += part + "."
    return outer


def _inner(name: str) -> str:
    return ".".join(_RENAMED.get(part, part) for part in name[len(_outer(name)) :].split("."))
