"""Checks GPU kernels against their references and times them in CUDA graphs, at the shapes of real models.

Needs PyTorch, Triton and an NVIDIA GPU; with ``--tiny`` it checks small ones, in Triton's interpreter if
``TRITON_INTERPRET=1``. Appends a line per measurement to the file that ``--out`` names.

    python benchmarks/gpu/kernels.py --out kernels.jsonl
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tuneserve.kernels.gpu.gate import gate
from tuneserve.kernels.gpu.greedy import greedy, greedy_scratch
from tuneserve.kernels.gpu.lora import lora_expand, lora_gate, lora_shrink
from tuneserve.kernels.gpu.lora_join import joined_columns, lora_join, put_joined
from tuneserve.kernels.gpu.lora_rows import LoraRows, LoraWeights
from tuneserve.kernels.gpu.matvec import LoraCall, matvec, matvec_reference
from tuneserve.kernels.gpu.sample import Asks, SamplingResults, SamplingRows, sample, sample_reference
from tuneserve.kernels.gpu.skinny import skinny

Call = Callable[[], Any]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
COPIES, LAUNCHES = 4, 16
SEEN = 500


@dataclass(frozen=True)
class Sizes:
    """What is measured; ``linears`` are columns, rows and pieces of a product, and whether it is gated."""

    linears: dict[str, tuple[int, int, tuple[int, ...], bool]]
    rows: tuple[int, ...]
    rank: int
    vocabulary: int


FULL = Sizes(
    {
        "qkv": (4096, 6144, (4096, 5120, 6144), False),
        "output": (4096, 4096, (4096,), False),
        "gate_up": (4096, 28672, (14336, 28672), True),
        "down": (14336, 4096, (4096,), False),
    },
    (1, 8, 32, 128, 256),
    16,
    128256,
)
TINY = Sizes({"qkv": (512, 96, (64, 80, 96), False), "gate_up": (512, 128, (64, 128), True)}, (1, 3, 40), 16, 2500)


class Results:
    """Lines of measurements, written as they come."""

    def __init__(self, out: Path, timed: bool) -> None:
        self._out, self._timed = out, timed
        name = torch.cuda.get_device_name() if timed else "none"
        self._facts = {"gpu": name, "torch": torch.__version__}

    def add(self, calls: list[Call], times: int = 0, **facts: Any) -> None:
        """Time ``calls`` in one graph; µs are of one of them, or of a part of them of which there are so many."""
        us = microseconds(calls) * len(calls) / (times or len(calls)) if self._timed else None
        line = facts | {"us": us and round(us, 2)}
        with self._out.open("a") as out:
            out.write(json.dumps(line | self._facts) + "\n")
        print(json.dumps(line), flush=True)


def microseconds(calls: list[Call], replays: int = 10) -> float:
    """Return what one of ``calls`` takes in a graph of them all, the median of five times ``replays``."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / replays / len(calls))
    return statistics.median(times)


def check(found: torch.Tensor, expected: torch.Tensor, what: str, limit: float) -> None:
    """Raise unless the relative error is within ``limit``."""
    error = float((found.float() - expected.float()).norm() / expected.float().norm())
    print(f"check {what}: relative error {error:.1e}", flush=True)
    assert error < limit, what


class Linear:
    """A product of one shape with weights in several copies, so that none of them stays in a cache."""

    def __init__(self, columns: int, rows: int, ends: tuple[int, ...], gated: bool, rank: int, slots: int) -> None:
        self.columns, self.rows, self.gated = columns, rows, gated
        dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
        like: dict[str, Any] = {"device": DEVICE, "dtype": dtype}
        random = partial(torch.randn, **like)
        self.weights = [random(rows, columns) / columns**0.5 for _ in range(COPIES)]
        self.norm = random(columns)
        ranks = torch.full((slots,), rank, dtype=torch.int32, device=DEVICE)
        a, b = random(slots, len(ends) * rank, columns) / columns**0.5, random(slots, rows, rank) / rank**0.5
        self.adapters = LoraWeights(a, b, ranks, ends)
        self.few = LoraWeights(a[:1], b[:1], ranks[:1], ends)
        self.joined = [torch.zeros(rows, columns + joined_columns(self.few), **like) for _ in range(COPIES)]
        for weight, joined in zip(self.weights, self.joined, strict=True):
            joined[:, :columns] = weight
            put_joined(joined, self.few, 0)

    def calls(self, x: torch.Tensor, adapters: str) -> Iterator[tuple[Call, torch.Tensor, LoraCall | None]]:
        """Yield calls, the result of each, and the deltas in it: none, of one adapter, or of one for each row.

        ``joined`` has one adapter, its expands beside the weight.
        """
        count = len(x)
        arrived = torch.zeros(LAUNCHES, 1, dtype=torch.int32, device=DEVICE)
        for index in range(LAUNCHES):
            weight = self.weights[index % COPIES]
            out = x.new_zeros(count, self.rows // (1 + self.gated))
            if adapters == "none":
                lora = None
            elif adapters == "joined":
                taken = LoraRows.of(count, [self.few])
                taken.put([0] * count)
                lora = LoraCall(self.few, taken, arrived[index])
                weight = self.joined[index % COPIES]
            else:
                taken = LoraRows.of(count, [self.adapters])
                taken.put([index % COPIES] * count if adapters == "one" else list(range(count)))
                lora = LoraCall(self.adapters, taken, arrived[index])
            yield self._call(x, weight, lora, out, arrived if index == 0 else None), out, lora

    def _call(
        self, x: torch.Tensor, weight: torch.Tensor, lora: LoraCall | None, out: torch.Tensor,
        arrived: torch.Tensor | None,
    ) -> Call:  # fmt: skip
        whole = x.new_zeros(len(x), self.rows) if len(x) > 32 else None

        def call() -> None:
            if arrived is not None and lora is not None and whole is None:
                arrived.zero_()
            if whole is None:
                (matvec if len(x) == 1 else skinny)(x, weight, gated=self.gated, lora=lora, out=out)
                return
            beside = weight.shape[1] > self.columns
            if beside and lora is not None:
                rows = lora_join(x, lora.weights, lora.rows, x.new_empty(len(x), weight.shape[1]))
            else:
                rows = x
            product = torch.mm(rows, weight.T, out=whole if self.gated else out)
            if lora is not None and not beside:
                lora_shrink(x, lora.weights, lora.rows)
                if self.gated:
                    lora_gate(lora.weights, lora.rows, product, out)
                else:
                    lora_expand(lora.weights, lora.rows, product)
            elif self.gated:
                gate(product, out)

        return call


def lora(sizes: Sizes, results: Results) -> None:
    """Measure products with no adapter, with one, and with one for each row."""
    for name, (columns, rows, ends, gated) in sizes.linears.items():
        linear = Linear(columns, rows, ends, gated, sizes.rank, max(*sizes.rows, COPIES))
        for count in sizes.rows:
            x = torch.randn(count, columns, device=DEVICE).to(linear.norm.dtype)
            for adapters in ("none", "one", "each", "joined") if count > 32 else ("none", "one", "each"):
                calls = list(linear.calls(x, adapters))
                for call, _, _ in calls:
                    call()
                _, out, delta = calls[-1]
                expected = matvec_reference(x, linear.weights[-1], gated=gated, lora=delta)
                if count > 32 and delta is not None:
                    shrinks = [partial(lora_shrink, x, delta.weights, delta.rows)] * LAUNCHES
                    results.add(shrinks, kernel="shrink", linear=name, rows=count, adapters=adapters)
                check(out, expected, f"{name}, {count} rows, adapters: {adapters}", 1e-2)
                results.add([call for call, _, _ in calls], kernel="lora", linear=name, rows=count, adapters=adapters)
        del linear


SAMPLED: dict[str, dict[str, float]] = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "top_k": {"temperature": 0.8, "top_k": 40},
    "top_p": {"temperature": 0.8, "top_p": 0.95},
    "both": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.01},
    "penalties": {"temperature": 0.8, "top_p": 0.95, "repetition": 1.1, "presence": 0.1, "frequency": 0.1},
    "logprobs": {"temperature": 0.8, "asked": 20},
}


def sampling_rows(count: int, vocabulary: int, params: dict[str, float]) -> SamplingRows:
    """Return rows that all ask for the same; with penalties, each has seen so many tokens."""
    names = {"temperature": 0.0, "top_p": 1.0, "min_p": 0.0, "repetition": 1.0, "presence": 0.0, "frequency": 0.0}
    numbers = [params.get(name, default) for name, default in names.items()]
    whole = partial(torch.full, (count,), dtype=torch.int32, device=DEVICE)
    seen = SEEN if "repetition" in params else 0
    room = count * (seen + 8)
    tokens = torch.stack([torch.randperm(vocabulary)[: seen + 8] for _ in range(count)]).flatten()
    return SamplingRows(
        numbers=torch.tensor([numbers] * count, dtype=torch.float64, device=DEVICE),
        top_k=whole(int(params.get("top_k", 0))),
        asked=whole(int(params.get("asked", -1))),
        penalised=whole(int(seen > 0)),
        edits=torch.arange(0, room + 1, seen + 8, dtype=torch.int32, device=DEVICE),
        used=whole(seen),
        tokens=tokens.to(DEVICE, torch.int32),
        bias=torch.zeros(room, device=DEVICE),
        until=torch.zeros(room, dtype=torch.int32, device=DEVICE),
        counts=torch.randint(0, 4, (room,), dtype=torch.int32, device=DEVICE),
        raw=torch.zeros(room, device=DEVICE),
        uniforms=torch.rand(count, 8, dtype=torch.float64, device=DEVICE),
        step=whole(0),
        produced=whole(0),
    )


def sampling(sizes: Sizes, results: Results) -> None:
    """Measure the choice of tokens, from logits that are spread as a model's are and from nearly even ones."""
    for count in sizes.rows:
        for spread in (3.0, 0.5):
            logits = torch.randn(count, sizes.vocabulary, device=DEVICE) * spread
            ids, lengths = torch.zeros(count, dtype=torch.int64, device=DEVICE), torch.ones(count, device=DEVICE).int()
            scratch, kept = greedy_scratch(count, DEVICE), SamplingResults.of(count, sizes.vocabulary, DEVICE)
            calls = [partial(greedy, logits, ids, lengths, scratch)] * 8
            results.add(calls, kernel="greedy", rows=count, spread=spread)
            for name, params in SAMPLED.items():
                rows = sampling_rows(count, sizes.vocabulary, params)
                asks = Asks(bool({"top_k", "top_p", "min_p"} & set(params)), "repetition" in params, "asked" in params)
                if count <= 32:
                    _check_sample(logits, rows, asks, f"{name}, spread {spread}")
                rows.step.zero_()
                calls = [partial(sample, logits, ids, lengths, rows, kept, asks), rows.step.zero_] * 8
                line = {"kernel": "sample", "asked": name, "rows": count, "spread": spread}
                results.add(calls, times=8, **line)


def _check_sample(logits: torch.Tensor, rows: SamplingRows, asks: Asks, name: str) -> None:
    count = len(logits)
    ids, expected = (torch.zeros(count, dtype=torch.int64, device=DEVICE) for _ in range(2))
    lengths = [torch.ones(count, dtype=torch.int32, device=DEVICE) for _ in range(2)]
    found = [SamplingResults.of(count, logits.shape[1], DEVICE) for _ in range(2)]
    before = SamplingRows(**{name: tensor.clone() for name, tensor in vars(rows).items()})
    sample(logits.clone(), ids, lengths[0], rows, found[0], asks)
    sample_reference(logits.clone(), expected, lengths[1], before, found[1])
    equal = float((ids == expected).float().mean())
    print(f"check sample, {count} rows, {name}: {equal:.3f} of the tokens equal", flush=True)
    # A random number that falls within rounding of a token's bound may draw its neighbour.
    assert equal >= 1 - max(1, count // 100) / count * (count > 1)
    torch.testing.assert_close(found[0].logprobs[ids == expected], found[1].logprobs[ids == expected])


def run(sections: dict[str, Callable[[Sizes, Results], None]], about: str | None) -> None:
    """Check and time everything, or the sections that are named."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=list(sections))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--rows", type=int, nargs="+", help="of these numbers alone")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    options = parser.parse_args()
    torch.manual_seed(0)
    sizes = TINY if options.tiny else FULL
    sizes = replace(sizes, rows=tuple(options.rows or sizes.rows))
    results = Results(options.out, timed=not options.tiny)
    for name in options.sections:
        started = time.perf_counter()
        with torch.inference_mode():
            sections[name](sizes, results)
        print(f"{name}: {time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    run({"lora": lora, "sampling": sampling}, __doc__)
