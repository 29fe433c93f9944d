"""The first rank of a model that several devices share: whatever it runs, the others run too."""

from collections.abc import Collection

import torch
import torch.distributed as dist

from tuneserve.errors import EngineError, InputError
from tuneserve.native._batch import Batch, to_device
from tuneserve.native._decoders import AnyDecoder, LoadedDecoder
from tuneserve.native._load import EngineConfig, load_decoder
from tuneserve.native._rank_wire import (
    Array,
    DecodeGreedily,
    Forward,
    GoOnGreedily,
    Logits,
    PackedBatch,
    UseCache,
    Wipe,
)
from tuneserve.native._ranks import Ranks
from tuneserve.native._runner import Runner
from tuneserve.native._sequence import Sequence
from tuneserve.native._sizes import free_memory
from tuneserve.spec import Share

_MOST_RANKS = 64


def lead(config: EngineConfig) -> tuple[LoadedDecoder, Ranks]:
    """Start the other ranks and load the first share; there is one such model in a process, which ends with any rank.

    Raises:
        InputError: the model cannot be divided so, or not on this machine.
        EngineError: a rank ended.
    """
    _check(config)
    ranks = Ranks(config)
    try:
        decoder = load_decoder(config, Share(0, ranks.size))
        ranks.connect(decoder.device)
    except BaseException:
        ranks.close()
        raise
    on_gpus = decoder.device.type == "cuda"
    ranks.free = min(ranks.free, free_memory(decoder.device)) // (1 if on_gpus else ranks.size)
    return decoder, ranks


def _check(config: EngineConfig) -> None:
    size = config.tensor_parallel
    if not 1 <= size <= _MOST_RANKS:
        raise InputError(f"tensor_parallel is {size}; choose from 1 to {_MOST_RANKS}.")
    if dist.is_initialized():
        raise EngineError("this process is in a process group already; serve with tensor_parallel from another one.")
    if torch.cuda.is_available():
        if (count := torch.cuda.device_count()) < size:
            raise InputError(f"tensor_parallel is {size} and there are {count} GPUs; choose at most {count}.")
        return
    if config.cpu_step == "compiled":
        raise InputError("the compiled step runs in one process; leave cpu_step at auto, or tensor_parallel at 1.")
    if config.weights in ("int8", "int4"):
        raise InputError(
            f"{config.weights} weights need the compiled step, which runs in one process; leave weights at auto, or "
            "tensor_parallel at 1."
        )


class LeadingRunner(Runner):
    """Runs the first share of a decoder, and has the other ranks run theirs."""

    def __init__(self, decoder: AnyDecoder, blocks: int, sequences: int, ranks: Ranks) -> None:
        super().__init__(decoder, blocks, sequences)
        self._ranks = ranks
        ranks.send(UseCache(blocks, sequences))

    @property
    def host(self) -> torch.device:
        """The CPU, from where batches go to all ranks."""
        return torch.device("cpu")

    def chooses_for(self, sequences: Collection[Sequence]) -> bool:
        """Whether the ranks can choose for each sequence by themselves, which is to take the likeliest."""
        return super().chooses_for(sequences) and all(sequence.simply_greedy for sequence in sequences)

    def wipe(self, blocks: tuple[int, ...]) -> None:
        """Overwrite blocks of the cache with zeros."""
        if blocks:
            self._ranks.send(Wipe(blocks))
            super().wipe(blocks)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Run a batch and return its hidden states; see :class:`Runner`."""
        self._ranks.send(Forward(PackedBatch.of(batch)))
        return super().forward(batch.to(self.decoder.device))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of hidden states; see :class:`Runner`."""
        hidden = hidden.contiguous()
        self._ranks.send(Logits(len(hidden)))
        dist.broadcast(hidden, 0)
        return super().logits(hidden)

    def decode_greedily(self, batch: Batch, steps: int) -> torch.Tensor:
        """Run greedy steps; see :class:`Runner`."""
        self._ranks.send(DecodeGreedily(PackedBatch.of(batch), steps))
        return super().decode_greedily(batch.to(self.decoder.device), steps)

    def go_on_greedily(self, tables: torch.Tensor, steps: int) -> torch.Tensor:
        """Run greedy steps after those; see :class:`Runner`."""
        self._ranks.send(GoOnGreedily(Array.of(tables), steps))
        return super().go_on_greedily(to_device(tables, self.decoder.device), steps)
