"""The decoder on a CPU as one call into compiled code per step: norms, products, attention over the paged cache."""

import ctypes
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields

import torch

from tuneserve.adapters import linear_shapes
from tuneserve.errors import EngineError
from tuneserve.kernels import cpu
from tuneserve.kernels.cpu import Activation, Kind
from tuneserve.model._compiled_lora import AdapterTable, PackedAdapter
from tuneserve.model._deferred import DeferredLinear
from tuneserve.model._linear import DenseLinear, Linear
from tuneserve.model._lora import AdapterWeights
from tuneserve.model._pack import KINDS, Packed, pack_codes, pack_dense
from tuneserve.model._paged import PagedBatch
from tuneserve.model._pages import Pages
from tuneserve.model._rope import query_scales, rope_tables
from tuneserve.model._weights import LayerWeights, Weights
from tuneserve.spec import LayerSpec, ModelSpec, RopeSpec

# Of attention.h, and the widest vector.
_MAX_HEAD_DIM, _MAX_GROUP, _LANES = 256, 32, 16
_ACTIVATIONS = {"silu": Activation.SILU, "gelu_tanh": Activation.GELU_TANH}
_LINEARS = ("qkv", "output", "gate_up", "down")
_LAYER_FIELDS = {"rope", "window"}
_MODEL_FIELDS = {
    "family", "hidden_size", "intermediate_size", "heads", "kv_heads", "head_dim", "vocab_size", "context_length",
    "per_layer", "norm_eps", "tied", "scale", "activation", "norm_plus_one", "qkv_bias", "output_bias", "mlp_bias",
    "fused", "qk_norm", "sinks", "post_norms", "query_scaling", "wrapped", "softcap", "embedding_scale",
    "residual_scale", "logit_scale", "logit_softcap",
}  # fmt: skip


def reasons_against(spec: ModelSpec, weights: Weights, bits: Kind | None = None) -> list[str]:
    """Return why the compiled step cannot run a model, nothing where it can; for ``bits`` see :class:`CompiledDecoder`.

    What a spec may come to say that is not known here counts against it unless it has the default.
    """
    multiple = _LANES if bits is None else cpu.GROUP_SIZE
    widths = {"hidden_size": spec.hidden_size, "intermediate_size": spec.intermediate_size, "head_dim": spec.head_dim}
    reasons = [f"{name} is {width}, not a multiple of {multiple}" for name, width in widths.items() if width % multiple]
    if spec.head_dim > _MAX_HEAD_DIM:
        reasons.append(f"head_dim is {spec.head_dim}, more than {_MAX_HEAD_DIM}")
    if spec.heads // spec.kv_heads > _MAX_GROUP:
        reasons.append(f"{spec.heads // spec.kv_heads} query heads share a key head, more than {_MAX_GROUP}")
    reasons += _unknown(spec, _MODEL_FIELDS)
    reasons += sorted({reason for layer in spec.per_layer for reason in _unknown(layer, _LAYER_FIELDS)})
    if spec.activation not in _ACTIVATIONS:
        reasons.append(f"its activation is {spec.activation}")
    linears = [weights.head, *(getattr(layer, name) for layer in weights.layers for name in _LINEARS)]
    kinds = {type(one).__name__ for one in linears if not isinstance(one, DenseLinear | DeferredLinear | None)}
    reasons += [f"its weights are {kind}" for kind in sorted(kinds)]
    if weights.embedding.device.type != "cpu":
        reasons.append(f"its weights are on {weights.embedding.device}")
    return reasons


def _unknown(part: ModelSpec | LayerSpec, known: set[str]) -> list[str]:
    unknown = [field for field in fields(part) if field.name not in known]
    return [f"it has {field.name}" for field in unknown if getattr(part, field.name) != field.default]


class CompiledDecoder:
    """A decoder whose weights were packed for the compiled step; runs one step at a time.

    A row's results do not depend on what else is in the batch, nor on how its prompt was cut into chunks, to the bit.

    ``kept`` and ``dequantised`` count weights that are stored in few bits, by how they are stored: those that stayed in
    these bits, and those that did not.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        context_length: int,
        *,
        bits: Kind | None = None,
        keep: bool = True,
        threads: int | None = None,
        library: cpu.Library | None = None,
    ) -> None:
        """Pack ``weights``, of which only the embedding stays in use.

        Args:
            spec: a model that :func:`reasons_against` has nothing against.
            weights: on the CPU, in float32, float16 or bfloat16, which is then the dtype of the cache.
            context_length: positions below it can be computed.
            bits: INT8 or INT4 to quantise the linear weights, in groups of 32 (INT4 leaves the head at INT8); None
                leaves them in their dtype.
            keep: whether, where ``bits`` is None, deferred weights stay in the few bits that they are stored in, if a
                kernel computes with these.
            threads: None for as many as PyTorch uses.
            library: None to build and load the one for this machine.

        Raises:
            EngineError: there is no compiler, or the threads cannot be started.
            InputError: a deferred weight cannot be read.
        """
        self.spec, self.context_length = spec, context_length
        self.dtype, self.device = weights.embedding.dtype, weights.embedding.device
        self._library = library or cpu.load(cpu.build())
        self._held: list[torch.Tensor] = []
        self._pages = Pages()
        self._bits, self._keep = bits, keep
        self.kept, self.dequantised = Counter[str](), Counter[str]()
        self._model = self._describe(weights)
        self._logits = torch.empty(0, spec.vocab_size)
        self._adapters = AdapterTable(linear_shapes(spec))
        self.threads = threads or torch.get_num_threads()
        session = self._library.open(self.threads)
        if session is None:
            raise EngineError("the threads of the compiled step cannot be started; lower OMP_NUM_THREADS.")
        self._session = session
        weakref.finalize(self, self._library.close, session)

    @property
    def weight_bytes(self) -> int:
        """Bytes of memory that the weights take."""
        return sum(tensor.nbytes for tensor in self._held)

    def prepare_adapter(self, adapter: AdapterWeights) -> PackedAdapter:
        """Pack an adapter for :meth:`put_adapter`; also while a step runs."""
        return self._adapters.pack(adapter)

    def put_adapter(self, slot: int, adapter: PackedAdapter) -> None:
        """Let rows with ``slot`` be computed with this adapter."""
        self._adapters.put(slot, adapter)

    def drop_adapter(self, slot: int) -> None:
        """Free what is in a slot."""
        self._adapters.put(slot, self._adapters.pack({}))

    def forward(self, batch: PagedBatch, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Store the keys and values of a batch's tokens and return their hidden states after the last norm.

        Args:
            batch: the tokens.
            keys, values: the cache, (layers, blocks, kv_heads, block size, head_dim).

        Returns:
            float32 (tokens, hidden).

        Raises:
            EngineError: there is no memory for so many tokens.
        """
        spec, tokens, sequences = self.spec, len(batch.ids), len(batch.starts) - 1
        assert keys.shape == values.shape and keys.dtype == values.dtype == self.dtype
        assert keys.shape[0] == spec.layers and keys.shape[2:] == (spec.kv_heads, cpu.BLOCK_SIZE, spec.head_dim)
        assert len(batch.positions) == len(batch.slots) == tokens and len(batch.block_tables) == sequences
        slots = () if batch.adapters is None else (batch.adapters,)
        by_dtype = {torch.int64: (batch.ids, batch.positions, batch.slots),
                    torch.int32: (batch.starts, batch.block_tables, *slots), self.dtype: (keys, values)}  # fmt: skip
        for dtype, tensors in by_dtype.items():
            assert all(tensor.dtype == dtype and tensor.is_contiguous() for tensor in tensors)
        hidden = torch.empty(tokens, spec.hidden_size)
        given = cpu.Batch(
            tokens=tokens, sequences=sequences, max_blocks=batch.block_tables.shape[1],
            ids=batch.ids.data_ptr(), positions=batch.positions.data_ptr(), slots=batch.slots.data_ptr(),
            starts=batch.starts.data_ptr(), block_tables=batch.block_tables.data_ptr(),
            keys=keys.data_ptr(), values=values.data_ptr(), layer_stride=keys.stride(0), hidden=hidden.data_ptr(),
            slots_of_adapters=None if batch.adapters is None else batch.adapters.data_ptr(),
            deltas=self._adapters.pointer,
        )  # fmt: skip
        if self._library.step(self._session, ctypes.byref(self._model), ctypes.byref(given)) != 0:
            raise EngineError(f"there is no memory for a step of {tokens} tokens; free some on this machine.")
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (tokens, vocabulary) of float32 hidden states (tokens, hidden), until the next call.

        Raises:
            EngineError: there is no memory for so many tokens.
        """
        rows = len(hidden)
        assert hidden.dtype == torch.float32 and hidden.is_contiguous() and hidden.shape[1] == self.spec.hidden_size
        if len(self._logits) < rows:
            # Kept, because memory that is new is slower to write than the head is to compute.
            self._logits = torch.empty(rows, self.spec.vocab_size)
        arguments = (self._session, ctypes.byref(self._model), hidden.data_ptr(), rows, self._logits.data_ptr())
        if self._library.head(*arguments) != 0:
            raise EngineError(f"there is no memory for the logits of {rows} tokens; free some on this machine.")
        return self._logits[:rows]

    def _describe(self, weights: Weights) -> cpu.Model:
        spec, kind = self.spec, KINDS[self.dtype]
        ropes = {layer.rope for layer in spec.per_layer if layer.rope}
        tables = {rope: self._rope_tables(rope) for rope in ropes}
        layers = [self._layer(own, layer, tables) for own, layer in zip(spec.per_layer, weights.layers, strict=True)]
        return cpu.Model(
            hidden=spec.hidden_size, intermediate=spec.intermediate_size, layers=spec.layers, heads=spec.heads,
            kv_heads=spec.kv_heads, head_dim=spec.head_dim, vocab=spec.vocab_size,
            activation=_ACTIVATIONS[spec.activation], cache_kind=kind, embedding_kind=kind, eps=spec.norm_eps,
            attention_scale=spec.scale, attention_softcap=spec.softcap or 0.0, logit_softcap=spec.logit_softcap or 0.0,
            embedding_scale=torch.tensor(spec.embedding_scale, dtype=self.dtype).item(),
            residual_scale=spec.residual_scale, logit_scale=spec.logit_scale,
            embedding=self._pointer(weights.embedding), norm=self._float(weights.norm),
            query_scales=self._query_scales(),
            head=self._linear(weights.head, least=Kind.INT8), layer=(cpu.Layer * spec.layers)(*layers),
        )  # fmt: skip

    def _query_scales(self) -> int | None:
        if self.spec.query_scaling is None:
            return None
        scales = query_scales(self.spec.query_scaling, self.context_length, torch.float32, torch.device("cpu"))
        return self._pointer(scales.view(self.context_length))

    def _rope_tables(self, rope: RopeSpec) -> tuple[int, int]:
        cos, sin = rope_tables(rope, self.context_length, torch.float32, torch.device("cpu"))
        half = rope.dim // 2
        return self._pointer(cos[:, 0, :half]), self._pointer(sin[:, 0, half:])

    def _layer(self, own: LayerSpec, layer: LayerWeights, tables: Mapping[RopeSpec, tuple[int, int]]) -> cpu.Layer:
        cos, sin = tables[own.rope] if own.rope else (None, None)
        return cpu.Layer(
            attention_norm=self._float(layer.attention_norm), mlp_norm=self._float(layer.mlp_norm),
            post_attention_norm=self._float(layer.post_attention_norm), post_mlp_norm=self._float(layer.post_mlp_norm),
            query_norm=self._float(layer.q_norm), key_norm=self._float(layer.k_norm), sinks=self._float(layer.sinks),
            qkv=self._linear(layer.qkv), output=self._linear(layer.output),
            gate_up=self._linear(layer.gate_up, paired=True), down=self._linear(layer.down),
            cos=cos, sin=sin, rotary_dim=own.rope.dim if own.rope else 0, window=own.window or 0,
        )  # fmt: skip

    def _linear(self, linear: Linear | None, *, paired: bool = False, least: Kind | None = None) -> cpu.Linear:
        packed, bias = self._packed(linear, paired, None if self._bits is None else least or self._bits)
        if paired and bias is not None:
            bias = bias.view(2, -1, _LANES).transpose(0, 1).reshape(-1)
        return cpu.Linear(
            kind=packed.kind, rows=packed.rows, cols=packed.cols, panels=self._pointer(packed.panels),
            bias=self._float(bias), kinds=None if packed.kinds is None else self._pointer(packed.kinds),
            offsets=None if packed.offsets is None else self._pointer(packed.offsets),
        )  # fmt: skip

    def _packed(self, linear: Linear | None, paired: bool, bits: Kind | None) -> tuple[Packed, torch.Tensor | None]:
        if isinstance(linear, DeferredLinear):
            # Groups of activations may not reach over heads.
            keep = bits is None and self._keep and self.spec.head_dim % cpu.GROUP_SIZE == 0
            codes = linear.codes() if keep and linear.stored_as else None
            if codes is not None and (packed := pack_codes(self._library, codes, paired, self._pages)) is not None:
                self.kept.update(linear.stored_as)
                return packed, linear.read_bias()
            self.dequantised.update(linear.stored_as)
            linear = linear.load()
        assert isinstance(linear, DenseLinear)
        return pack_dense(self._library, linear.weight, paired, bits, self._pages), linear.bias

    def _float(self, tensor: torch.Tensor | None) -> int | None:
        return None if tensor is None else self._pointer(tensor.float())

    def _pointer(self, tensor: torch.Tensor) -> int:
        kept = tensor.contiguous()
        self._held.append(kept)
        return kept.data_ptr()
