"""What a decoder is, independent of the family it comes from."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length of pretraining.

    ``linear`` divides all frequencies by ``factor`` (arXiv:2306.15595). ``llama3`` leaves the high ones alone, divides
    the low ones, and blends in between: wavelengths are compared with ``original_length`` over ``high`` and ``low``.
    """

    kind: str
    factor: float
    low: float = 1.0
    high: float = 4.0
    original_length: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A pre-norm decoder with grouped-query attention, rotary positions and a gated feed-forward layer.

    Sizes count elements, ``context_length`` tokens. ``tied`` means that the head is the embedding.
    """

    family: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied: bool

    @property
    def qkv_size(self) -> int:
        """Rows of the fused query, key and value projection."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim
