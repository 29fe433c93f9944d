"""Which tensors are the weights of linear layers, by their names: without torch, and for any family.

What an export stores in fewer bits is decided by Transformers' own modules, which takes torch; tests hold the two
together for every family that they know.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tuneserve.checkpoint import TensorSpec

_LAYER = re.compile(r"(^|\.)(layers|h|blocks)\.\d+\.")
_TOWER = re.compile(r"(^|\.)(vision|visual|audio|multi_modal|embed_vision|embed_audio)")
_ROUTERS = ("mlp.gate", "block_sparse_moe.gate", "router", "feed_forward.router")
# Linear modules of decoders outside their layers.
_OUTSIDE = ("per_layer_model_projection",)
_CONV1D = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@dataclass(frozen=True)
class LinearNames:
    """``weights`` of linear modules and single experts, of which ``transposed`` are (in, out)."""

    weights: tuple[TensorSpec, ...]
    transposed: tuple[TensorSpec, ...]

    @property
    def plain(self) -> tuple[TensorSpec, ...]:
        """Those that are (out, in)."""
        return tuple(spec for spec in self.weights if spec not in self.transposed)


def linear_names(tensors: Iterable[TensorSpec], family: str) -> LinearNames:
    """Tell the linear weights of the decoder's layers from norms, embeddings, heads, routers and towers.

    A router of Mixture-of-Experts models is a linear module in some families; Transformers has none, and neither here.
    """
    found = [spec for spec in tensors if _is_linear(spec)]
    transposed = [spec for spec in found if family == "gpt2" and _module(spec).endswith(_CONV1D)]
    return LinearNames(tuple(found), tuple(transposed))


def _module(spec: TensorSpec) -> str:
    return spec.name.removesuffix(".weight")


def _is_linear(spec: TensorSpec) -> bool:
    module = _module(spec)
    if module == spec.name or len(spec.shape) != 2:
        return False
    if not _LAYER.search(module) and not module.endswith(_OUTSIDE):
        return False
    return not _TOWER.search(module) and not module.endswith(_ROUTERS)
