"""What a decoder over the paged cache offers the runner, whichever way it computes."""

from typing import Any, Protocol, runtime_checkable

import torch

from tuneserve.model import AdapterWeights, Chosen, Decoder, SampledRows
from tuneserve.native._batch import Batch
from tuneserve.native._transformers import TransformersDecoder
from tuneserve.spec import ModelSpec


class PagedDecoder(Protocol):
    """Computes a batch over a paged cache."""

    spec: ModelSpec
    dtype: torch.dtype
    device: torch.device
    context_length: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of memory that the weights take."""

    def forward(self, batch: Batch, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Store keys and values; return the hidden states after the last norm, (tokens, hidden)."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (tokens, vocabulary)."""


@runtime_checkable
class AheadDecoder(PagedDecoder, Protocol):
    """Computes steps one after the other without the host."""

    def decode_greedily(self, batch: Batch, keys: torch.Tensor, values: torch.Tensor, steps: int) -> torch.Tensor:
        """Return the tokens of ``steps`` steps, int64 (steps, sequences); -1 where numbers were not finite."""

    def go_on_greedily(
        self, block_tables: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, steps: int
    ) -> torch.Tensor:
        """Return the same of the steps after them, whose blocks are in new tables, int32 (sequences, blocks)."""

    def sample(self, hidden: torch.Tensor, rows: SampledRows) -> Chosen:
        """Return what was chosen after hidden states (rows, hidden), one random number for each."""

    def decode_sampled(self, batch: Batch, keys: torch.Tensor, values: torch.Tensor, rows: SampledRows) -> Chosen:
        """Return what was chosen in as many steps as there are random numbers for each sequence."""

    def go_on_sampling(
        self, block_tables: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, uniforms: torch.Tensor
    ) -> Chosen:
        """Return the same of the steps after them, with more random numbers, float64 (sequences, steps)."""


@runtime_checkable
class AdaptedDecoder(Protocol):
    """Computes each row with the adapter of its own that is in a slot, beside weights that stay as they are."""

    def prepare_adapter(self, adapter: AdapterWeights) -> Any:
        """Return what :meth:`put_adapter` takes; on any thread."""

    def put_adapter(self, slot: int, adapter: Any) -> None:
        """Let rows with ``slot`` be computed with this adapter."""

    def drop_adapter(self, slot: int) -> None:
        """Free what is in a slot."""


AnyDecoder = Decoder | PagedDecoder
LoadedDecoder = AnyDecoder | TransformersDecoder
