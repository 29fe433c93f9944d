"""What a decoder is, independent of the family it comes from."""

from dataclasses import dataclass
from typing import Literal

from tuneserve.spec._positions import LongRopeScaling, QueryScaling, RopeSpec

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, kw_only=True)
class ClampedSwiglu:
    """The gate of gpt-oss: gate * sigmoid(alpha * gate) * (up + 1), of a gate below ``limit`` and up within it."""

    alpha: float
    limit: float


@dataclass(frozen=True, kw_only=True)
class ExpertsSpec:
    """A feed-forward layer of ``count`` experts, of which a router chooses ``per_token`` for each token.

    Their outputs are added up, weighted with the softmax of the router's scores over those chosen if ``normalised``,
    over all if not. ``biases`` are those of the router and of the experts. The gate is the model's ``activation``
    unless ``swiglu`` is given. All tokens take one expert more of ``shared_size``, as far as a gate lets it through;
    None is no such expert.
    """

    count: int
    per_token: int
    intermediate_size: int
    normalised: bool
    biases: bool = False
    swiglu: ClampedSwiglu | None = None
    shared_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class DeltaNetSpec:
    """Linear attention by the gated delta rule (arXiv:2412.06464).

    A sequence carries a state of (key_dim, value_dim) for each of ``value_heads``, of which as many share a key and a
    query as there are for each of ``key_heads``, and the last ``kernel`` - 1 inputs of a causal convolution over
    queries, keys and values.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int

    @property
    def key_size(self) -> int:
        """Rows of the key projection, and of the query projection."""
        return self.key_heads * self.key_dim

    @property
    def value_size(self) -> int:
        """Rows of the value projection, and of the output's gate."""
        return self.value_heads * self.value_dim

    @property
    def conv_size(self) -> int:
        """Channels of the convolution."""
        return 2 * self.key_size + self.value_size


@dataclass(frozen=True, kw_only=True)
class LayerInputSpec:
    """``size`` elements for each token and layer, from an embedding of ``vocab_size`` and from the first hidden state.

    They are added at the end of the layer, behind a gate (Gemma 3n and 4).
    """

    size: int
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """What can differ from layer to layer.

    ``window`` is how many tokens a token sees, itself included; None is all of them. Without ``rope`` the layer knows
    no positions. ``experts`` take the place of the gated feed-forward layer, ``delta_net`` that of attention. The sizes
    are those of the model where they are None. With ``keys_from`` the layer has neither keys nor values and takes those
    of that layer, an earlier one; with ``keys_are_values`` it projects keys only, and values are these before their
    norm.
    """

    rope: RopeSpec | None
    window: int | None = None
    experts: ExpertsSpec | None = None
    delta_net: DeltaNetSpec | None = None
    head_dim: int | None = None
    kv_heads: int | None = None
    intermediate_size: int | None = None
    keys_from: int | None = None
    keys_are_values: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A pre-norm decoder with grouped-query attention and a gated feed-forward layer, or experts.

    Sizes count elements, ``context_length`` tokens. What is not said of a checkpoint's names follows from ``family``.

    Attributes:
        per_layer: what differs between layers, in their order.
        norm_eps: added to the mean square in every norm.
        norm_plus_one: norms multiply by 1 + weight (Gemma).
        tied: the head is the embedding.
        activation: of the gate, which is multiplied by the up projection.
        qkv_bias, output_bias, mlp_bias: which linear layers have a bias; the last is that of all three.
        fused: the checkpoint has query, key and value in one tensor, gate and up in another.
        wrapped: the checkpoint is a multimodal one, of which this is the text part.
        qk_norm: each head of query and key is normalised before it is rotated.
        sinks: each head has a score that takes its part of the probability in attention and gives nothing.
        value_norm: each head of value is brought to unit mean square.
        output_gate: queries come with a gate, head by head, whose sigmoid multiplies what attention gives.
        post_norms: the outputs of attention and of the feed-forward layer are normalised before they are added.
        query_scaling: how rotated queries grow with their position; None is not at all.
        scale: scores of attention are multiplied by it.
        softcap: scores are squashed to within plus and minus this; None leaves them.
        embedding_scale: embeddings are multiplied by it, rounded to the dtype of the weights.
        residual_scale: what attention and the feed-forward layer add is multiplied by it.
        layer_input: what each layer gets of a token beside the hidden state; None is nothing.
        layer_scalars: what leaves a layer is multiplied by a number of its own.
        logit_scale: logits are multiplied by it.
        logit_softcap: logits are squashed to within plus and minus this; None leaves them.
    """

    family: str
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    per_layer: tuple[LayerSpec, ...]
    norm_eps: float
    tied: bool
    scale: float
    activation: Activation = "silu"
    norm_plus_one: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    fused: bool = False
    qk_norm: bool = False
    value_norm: bool = False
    output_gate: bool = False
    sinks: bool = False
    post_norms: bool = False
    query_scaling: QueryScaling | None = None
    wrapped: bool = False
    softcap: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    layer_input: LayerInputSpec | None = None
    layer_scalars: bool = False
    logit_scale: float = 1.0
    logit_softcap: float | None = None

    @property
    def layers(self) -> int:
        """How many there are; what each keeps of a token is :meth:`cache_sizes`."""
        return len(self.per_layer)

    @property
    def q_size(self) -> int:
        """Rows of the query projection."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of the key projection, and of the value projection."""
        return self.kv_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Rows of the fused query, key and value projection."""
        return self.q_size + 2 * self.kv_size

    @property
    def short_context_length(self) -> int:
        """The longest context for which :class:`LongRopeScaling` takes its short factors, the model's if it has none.

        A longer context takes the long factors for texts of all lengths.
        """
        scalings = [layer.rope.scaling for layer in self.per_layer if layer.rope]
        originals = [scaling.original_length for scaling in scalings if isinstance(scaling, LongRopeScaling)]
        return min([*originals, self.context_length])

    def layer(self, index: int) -> LayerSpec:
        """Return what layer number ``index`` is, from 0."""
        return self.per_layer[index]

    @property
    def has_state(self) -> bool:
        """Whether a sequence carries a state beside keys and values, which cannot be taken back to an earlier token."""
        return any(layer.delta_net is not None for layer in self.per_layer)

    def attention_sizes(self, index: int) -> tuple[int, int]:
        """Return the key-value heads of layer ``index`` and the elements of each of its heads."""
        own = self.layer(index)
        return own.kv_heads or self.kv_heads, own.head_dim or self.head_dim

    def cache_sizes(self, index: int) -> tuple[int, int] | None:
        """Return key-value heads and head_dim of what layer ``index`` keeps of a token; None where it keeps nothing."""
        own = self.layer(index)
        return None if own.delta_net is not None or own.keys_from is not None else self.attention_sizes(index)
