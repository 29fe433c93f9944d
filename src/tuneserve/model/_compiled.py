"""The decoder on a CPU as one call into compiled code per step: norms, products, attention over the paged cache."""

import ctypes
import weakref
from typing import Protocol

import torch

from tuneserve.errors import EngineError
from tuneserve.kernels import cpu
from tuneserve.kernels.cpu import Kind
from tuneserve.model._rope import frequencies
from tuneserve.model._weights import LayerWeights, Weights
from tuneserve.spec import ModelSpec

_KINDS = {torch.float32: Kind.FLOAT32, torch.float16: Kind.FLOAT16, torch.bfloat16: Kind.BFLOAT16}
# Of attention.h, and the widest vector.
_MAX_HEAD_DIM, _MAX_GROUP, _LANES = 256, 32, 16


class PagedBatch(Protocol):
    """The tokens of a step as the compiled code reads them; contiguous, on the CPU.

    Attributes:
        ids, positions, slots: int64 (tokens); a slot is block * block size + offset.
        starts: the first row of each sequence, then the number of rows, int32 (sequences + 1).
        block_tables: the blocks of each sequence in order, int32 (sequences, blocks).
        last_rows: the rows whose logits are wanted, int64.
    """

    @property
    def ids(self) -> torch.Tensor: ...  # noqa: D102
    @property
    def positions(self) -> torch.Tensor: ...  # noqa: D102
    @property
    def slots(self) -> torch.Tensor: ...  # noqa: D102
    @property
    def starts(self) -> torch.Tensor: ...  # noqa: D102
    @property
    def block_tables(self) -> torch.Tensor: ...  # noqa: D102
    @property
    def last_rows(self) -> torch.Tensor: ...  # noqa: D102


def reasons_against(spec: ModelSpec, weights: Kind) -> list[str]:
    """Return why the compiled step cannot run a model, nothing where it can."""
    widths = {"hidden_size": spec.hidden_size, "intermediate_size": spec.intermediate_size, "head_dim": spec.head_dim}
    multiple = cpu.GROUP_SIZE if weights in (Kind.INT8, Kind.INT4) else _LANES
    reasons = [f"{name} is {width}, not a multiple of {multiple}" for name, width in widths.items() if width % multiple]
    if spec.head_dim > _MAX_HEAD_DIM:
        reasons.append(f"head_dim is {spec.head_dim}, more than {_MAX_HEAD_DIM}")
    if spec.heads // spec.kv_heads > _MAX_GROUP:
        reasons.append(f"{spec.heads // spec.kv_heads} heads share a key, more than {_MAX_GROUP}")
    return reasons


class CompiledDecoder:
    """A decoder whose weights were packed for the compiled step; runs one step at a time.

    A row's results do not depend on what else is in the batch, nor on how its prompt was cut into chunks, to the bit.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        context_length: int,
        *,
        bits: Kind | None = None,
        threads: int | None = None,
        library: cpu.Library | None = None,
    ) -> None:
        """Pack ``weights``, of which only the embedding stays in use.

        Args:
            spec: a model that :func:`reasons_against` has nothing against.
            weights: on the CPU, in float32, float16 or bfloat16, which is then the dtype of the cache.
            context_length: positions below it can be computed.
            bits: INT8 or INT4 to quantise the linear weights, in groups of 32 (INT4 leaves the head at INT8); None
                keeps them as they are.
            threads: None for as many as PyTorch uses.
            library: None to build and load the one for this machine.

        Raises:
            EngineError: there is no compiler, or the threads cannot be started.
        """
        self.spec, self.context_length = spec, context_length
        self.dtype = weights.embedding.dtype
        self._library = library or cpu.load(cpu.build())
        self._kept: list[torch.Tensor] = []
        self._bits = bits
        self._model = self._describe(weights)
        self._logits = torch.empty(0)
        session = self._library.open(threads or torch.get_num_threads())
        if session is None:
            raise EngineError("the threads of the compiled step cannot be started; lower OMP_NUM_THREADS.")
        self._session = session
        weakref.finalize(self, self._library.close, session)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the weights take."""
        return sum(tensor.nbytes for tensor in self._kept)

    def step(self, batch: PagedBatch, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Store the keys and values of a batch's tokens and return the logits of its ``last_rows``.

        Args:
            batch: the tokens.
            keys, values: the cache, (layers, blocks, kv_heads, block size, head_dim).

        Returns:
            float32 (rows, vocabulary), valid until the next step.
        """
        rows = len(batch.last_rows)
        if self._logits.shape[0] < rows:
            self._logits = torch.empty(rows, self.spec.vocab_size)
        self._run(batch, keys, values, rows, self._logits.data_ptr(), None)
        return self._logits[:rows]

    def hidden(self, batch: PagedBatch, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Store likewise and return all tokens' hidden states after the last norm, float32 (tokens, hidden)."""
        hidden = torch.empty(len(batch.ids), self.spec.hidden_size)
        self._run(batch, keys, values, 0, None, hidden.data_ptr())
        return hidden

    def _run(
        self,
        batch: PagedBatch,
        keys: torch.Tensor,
        values: torch.Tensor,
        rows: int,
        logits: int | None,
        hidden: int | None,
    ) -> None:
        spec, tokens, sequences = self.spec, len(batch.ids), len(batch.starts) - 1
        assert keys.shape == values.shape and keys.dtype == values.dtype == self.dtype
        assert keys.shape[0] == spec.layers and keys.shape[2:] == (spec.kv_heads, cpu.BLOCK_SIZE, spec.head_dim)
        assert keys.is_contiguous() and values.is_contiguous()
        assert all(len(of_token) == tokens for of_token in (batch.positions, batch.slots))
        for array in (batch.ids, batch.positions, batch.slots, batch.last_rows):
            assert array.dtype == torch.int64 and array.is_contiguous()
        for array in (batch.starts, batch.block_tables):
            assert array.dtype == torch.int32 and array.is_contiguous()
        assert len(batch.block_tables) == sequences
        given = cpu.Batch(
            tokens=tokens, sequences=sequences, max_blocks=batch.block_tables.shape[1], rows=rows,
            ids=batch.ids.data_ptr(), positions=batch.positions.data_ptr(), slots=batch.slots.data_ptr(),
            starts=batch.starts.data_ptr(), block_tables=batch.block_tables.data_ptr(),
            out_rows=batch.last_rows.data_ptr(), keys=keys.data_ptr(), values=values.data_ptr(),
            layer_stride=keys.stride(0), logits=logits, hidden=hidden,
        )  # fmt: skip
        if self._library.step(self._session, ctypes.byref(self._model), ctypes.byref(given)) != 0:
            raise EngineError(f"there is no memory for a step of {tokens} tokens; lower the number of tokens per step.")

    def _describe(self, weights: Weights) -> cpu.Model:
        spec, kind = self.spec, _KINDS[self.dtype]
        angles = torch.outer(torch.arange(self.context_length, dtype=torch.float32), frequencies(spec))
        cos, sin = self._pointer(angles.cos()), self._pointer(angles.sin())
        layers = (cpu.Layer * spec.layers)(*(self._layer(layer, cos, sin) for layer in weights.layers))
        return cpu.Model(
            hidden=spec.hidden_size, intermediate=spec.intermediate_size, layers=spec.layers, heads=spec.heads,
            kv_heads=spec.kv_heads, head_dim=spec.head_dim, rotary_dim=spec.head_dim, vocab=spec.vocab_size,
            activation=cpu.Activation.SILU, cache_kind=kind, embedding_kind=kind,
            eps=spec.norm_eps, attention_scale=spec.head_dim**-0.5, attention_softcap=0.0, logit_softcap=0.0,
            embedding_scale=1.0, residual_scale=1.0, logit_scale=1.0,
            embedding=self._pointer(weights.embedding), norm=self._pointer(weights.norm.float()),
            head=self._linear(weights.head, head=True), layer=layers,
        )  # fmt: skip

    def _layer(self, layer: LayerWeights, cos: int, sin: int) -> cpu.Layer:
        return cpu.Layer(
            attention_norm=self._pointer(layer.attention_norm.float()),
            mlp_norm=self._pointer(layer.mlp_norm.float()),
            qkv=self._linear(layer.qkv),
            output=self._linear(layer.output),
            gate_up=self._linear(layer.gate_up, paired=True),
            down=self._linear(layer.down),
            cos=cos,
            sin=sin,
        )

    def _linear(self, weight: torch.Tensor, *, paired: bool = False, head: bool = False) -> cpu.Linear:
        rows, cols = weight.shape
        kind = _KINDS[weight.dtype] if self._bits is None else self._bits
        if head and kind == Kind.INT4:
            kind = Kind.INT8
        source = (weight if self._bits is None else weight.float()).contiguous()
        panels = torch.empty(self._library.packed_bytes(kind, rows, cols), dtype=torch.uint8)
        self._library.pack(kind, paired, source.data_ptr(), rows, cols, panels.data_ptr())
        return cpu.Linear(kind=kind, rows=rows, cols=cols, panels=self._pointer(panels))

    def _pointer(self, tensor: torch.Tensor) -> int:
        kept = tensor.contiguous()
        self._kept.append(kept)
        return kept.data_ptr()
