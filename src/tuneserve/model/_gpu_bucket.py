"""The buffers of decode steps of one size, and the CUDA graphs over them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tuneserve.kernels.gpu.decode_attention import DecodeScratch, shape_of
from tuneserve.kernels.gpu.greedy import greedy_scratch
from tuneserve.spec import ModelSpec

# Some eight warps for each multiprocessor of the largest GPUs, as measured.
_PROGRAMS = 1024
_MOST_SPLITS = 64


@dataclass(frozen=True)
class Rows:
    """What the rows of a step are computed in, each (rows, width): the residual stream and what comes of it."""

    hidden: torch.Tensor
    normed: torch.Tensor
    qkv: torch.Tensor
    attended: torch.Tensor
    gate_up: torch.Tensor
    activated: torch.Tensor

    @classmethod
    def of_prompts(cls, spec: ModelSpec, hidden: torch.Tensor) -> "Rows":
        """Return memory for the tokens ``hidden`` of prompts, of which attention and gate use the same in turn."""
        count = len(hidden)
        shared = hidden.new_empty(count * max(spec.qkv_size, 2 * spec.intermediate_size))
        return cls(
            hidden,
            torch.empty_like(hidden),
            shared[: count * spec.qkv_size].view(count, -1),
            hidden.new_empty(count, spec.q_size),
            shared[: count * 2 * spec.intermediate_size].view(count, -1),
            hidden.new_empty(count, spec.intermediate_size),
        )


class Bucket:
    """The buffers of decode steps of up to ``count`` sequences, none longer than ``context_length``."""

    def __init__(
        self, spec: ModelSpec, count: int, context_length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.count = count
        # Zeros, for rows of no sequence are computed too.
        hidden, inner = spec.hidden_size, spec.intermediate_size
        widths = (hidden, hidden, spec.qkv_size, spec.q_size, 2 * inner, inner)
        self.rows = Rows(*(torch.zeros(count, width, dtype=dtype, device=device) for width in widths))
        self.logits = torch.zeros(count, spec.vocab_size, device=device)
        self.best = greedy_scratch(count, device)
        tiles = -(-context_length // shape_of(spec.head_dim)[0])
        splits = max(1, min(_MOST_SPLITS, tiles, _PROGRAMS // (count * spec.kv_heads)))
        self.scratch = DecodeScratch.of(count, spec.heads, spec.kv_heads, spec.head_dim, splits, device)


class Graphs:
    """Steps captured once each and replayed afterwards, in one pool of memory; on the CPU they are just run.

    Args:
        state: tensors that steps change; capturing leaves them as they were.
        idle: zeroed while a step is captured, for it to write nothing.
    """

    def __init__(self, state: tuple[torch.Tensor, ...], idle: torch.Tensor) -> None:
        self._state, self._idle = state, idle
        self._graphs: dict[Any, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None

    def run(self, key: Any, step: Callable[[], None]) -> None:
        """Run ``step``, or the graph of the one that was run first with this ``key``."""
        if not self._idle.is_cuda:
            step()
            return
        if key not in self._graphs:
            self._graphs[key] = self._capture(step)
        self._graphs[key].replay()

    def forget(self) -> None:
        """Let each step be captured anew, for what they are over has moved."""
        self._graphs.clear()
        self._pool = None

    def _capture(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph:
        kept = [one.clone() for one in self._state]
        # Without sequences nothing is written; it compiles the kernels and lets cuBLAS set itself up.
        self._idle.zero_()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # What other threads ask of the device meanwhile, such as NCCL's that looks for timeouts, does no harm.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            step()
        self._pool = self._pool or graph.pool()
        for one, before in zip(self._state, kept, strict=True):
            one.copy_(before)
        return graph
