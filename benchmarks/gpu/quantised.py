"""Checks the kernels for weights of 4 and 8 bits on a GPU, and times them at the products of a model of 8B.

Weights are random. Each timing goes over so many copies of a weight that the L2 cache holds none of them, in a CUDA
graph. Appends a line per kernel, shape and configuration to the file that ``--out`` names; compiling goes on in
``--processes`` of them, whose results are in Triton's cache afterwards.

    python benchmarks/gpu/quantised.py --out micro.jsonl
"""

import argparse
import functools
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from tuneserve.checkpoint import StoredCodes
from tuneserve.kernels.gpu import matvec as dense_matvec
from tuneserve.kernels.gpu import packed_skinny as few
from tuneserve.kernels.gpu import packed_wide as many
from tuneserve.kernels.gpu import skinny as dense_skinny
from tuneserve.kernels.gpu.dequantise import dequantise, dequantise_reference
from tuneserve.kernels.gpu.packed import PackedWeight, block_of, pack

sys.path.append(str(Path(__file__).parents[1]))
from circumstances import gpu_circumstances

KINDS = ("nf4", "int4", "int8", "fp8")
GROUPS = {"nf4": 64, "int4": 128, "int8": None, "fp8": 128}
# Name, rows, columns, whether gated, of each product of a layer.
SHAPES = {
    "qkv": (6144, 4096, False),
    "output": (4096, 4096, False),
    "gate_up": (28672, 4096, True),
    "down": (4096, 14336, False),
}
LAYERS = 32
# Of fragments of rows, blocks of columns, warps, and how far ahead; for up to 8 rows, and for more.
FEW = [
    (1, 16, 4, 1), (1, 16, 4, 2), (1, 16, 16, 1), (1, 16, 16, 2), (1, 16, 8, 2), (1, 8, 4, 1), (1, 8, 4, 2),
    (1, 8, 8, 2), (1, 4, 2, 1), (1, 4, 2, 2), (2, 4, 4, 1),
]  # fmt: skip
MORE = [(1, 4, 4, 1), (2, 4, 4, 1), (2, 8, 8, 1), (2, 2, 2, 1), (2, 8, 8, 2), (2, 4, 4, 2)]
# Fragments of rows, rows of the input, warps and stages.
WIDE = {
    64: [(4, 64, 4, 3), (4, 64, 4, 4), (8, 64, 8, 4)],
    128: [(4, 128, 4, 3), (4, 128, 4, 4), (8, 128, 8, 3), (8, 128, 8, 4), (4, 64, 4, 4), (8, 64, 8, 4)],
}
WIDE[256] = WIDE[128]
MOST_COLD = 160e6


class Case(NamedTuple):
    """A kernel to time."""

    kind: str
    rows: int
    shape: str
    config: tuple[int, ...]


def cases(kinds: list[str], rows: list[int]) -> Iterator[Case]:
    """Yield what is timed."""
    for kind, count, shape in itertools.product(kinds, rows, SHAPES):
        for config in FEW if count <= 8 else MORE if count <= 32 else WIDE[count]:
            yield Case(kind, count, shape, config)


def random_codes(kind: str, rows: int, columns: int, group: int | None, *, minima: bool = False) -> StoredCodes:
    """Return random codes whose ``group`` columns, None for all, share a scale."""
    codes = torch.randint(256 if kind in ("int8", "fp8") else 16, (rows, columns), device="cuda").byte()
    if kind == "fp8":
        codes[(codes & 127) == 127] = 0
    groups = columns // (group or columns)

    def grid() -> torch.Tensor:
        return (torch.rand(rows, groups, device="cuda") + 0.1).repeat_interleave(columns // 32 // groups, 1)

    scales = grid()
    least = None if kind != "int4" else -grid() if minima else -8 * scales
    return StoredCodes(kind, codes, scales, least)  # type: ignore[arg-type]


def check() -> list[str]:
    """Return what does not compute what its reference does."""
    torch.manual_seed(0)
    wrong = []
    for kind, group, minima in itertools.product(KINDS, (32, 64, 128, None), (False, True)):
        if minima and kind != "int4":
            continue
        name = f"{kind}, groups of {group}, {'with' if minima else 'no'} minima"
        weight = pack(random_codes(kind, 544, 1152, group, minima=minima))
        written = dequantise(weight, torch.empty(544, 1152, dtype=torch.bfloat16, device="cuda")).float()
        # A product and a sum may be one rounding here and two there.
        if float((written - dequantise_reference(weight, torch.bfloat16).float()).abs().max()) > (0.1 if minima else 0):
            wrong.append(f"{name}: dequantised")
        errors = {}
        for count, gated in itertools.product((1, 3, 8, 16, 21, 32, 40, 70, 140), (False, True)):
            if count <= 32 or not gated:
                errors[count, gated] = _error(weight, count, gated=gated)
        (count, gated), worst = max(errors.items(), key=lambda item: item[1])
        print(f"check {name}: relative error up to {worst:.1e} ({count} rows, gated: {gated})", flush=True)
        # Where scales are not applied at the end, weights are rounded to bfloat16 as if they were dequantised.
        if not worst < 4e-3:
            wrong.append(f"{name}: products {worst:.1e}")
        x = torch.full((1, 1152), torch.nan, device="cuda", dtype=torch.bfloat16)
        out = torch.zeros(1, 544, device="cuda", dtype=torch.bfloat16)
        if not few.packed_skinny(x, weight, out=out).isnan().all():
            wrong.append(f"{name}: NaN is lost")
    return wrong


def _error(weight: PackedWeight, count: int, *, gated: bool) -> float:
    x = torch.randn(count, weight.columns, device="cuda").bfloat16()
    results = weight.rows // 2 if gated else weight.rows
    bias = torch.randn(weight.rows, device="cuda").bfloat16()
    residual = None if gated else torch.randn(count, results, device="cuda").bfloat16()
    out = torch.full((count, results), torch.nan, device="cuda", dtype=torch.bfloat16)
    if count <= 32:
        few.packed_skinny(x, weight, gated=gated, bias=bias, residual=residual, out=out)
    else:
        many.packed_wide(x, weight, bias=bias, residual=residual, scratch=_scratch(), out=out)
    exact = few.packed_skinny_reference(x.float(), weight, gated=gated, bias=bias, residual=residual)
    return float((out.float() - exact).norm() / exact.norm())


@functools.cache
def _scratch() -> many.WideScratch:
    return many.WideScratch.of(torch.device("cuda"))


def random_packed(kind: str, rows: int, columns: int) -> PackedWeight:
    """Return a packed weight of random bits."""
    group = GROUPS[kind]
    blocks, groups = columns // block_of(kind), columns // (group or columns)
    words = torch.randint(-(2**31), 2**31, (rows // 16, blocks, 128), device="cuda", dtype=torch.int64).int()
    scales = torch.rand(rows // 16, groups, 16, device="cuda") / 1000
    return PackedWeight(kind, rows, columns, words, scales, None, blocks // groups)


def timed(launches: list[Callable[[], object]], replays: int = 5) -> float:
    """Return the seconds that each of ``launches`` takes, one after the other in a graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        launches[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    graph.replay()
    seconds = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return statistics.median(seconds) / len(launches)


def launches_of(case: Case, weights: list[PackedWeight]) -> list[Callable[[], object]]:
    """Return the launches of a case, over all copies of its weight."""
    rows, columns, gated = SHAPES[case.shape]
    results = rows // 2 if gated else rows
    x = torch.randn(case.rows, columns, device="cuda").bfloat16()
    out = torch.zeros(case.rows, results, device="cuda", dtype=torch.bfloat16)
    residual = None if gated or case.shape == "qkv" else out
    times = max(1, 40 // len(weights))
    if case.rows > 32:
        # What is gated goes through memory.
        many.shape_of = lambda *_: case.config
        out = torch.zeros(case.rows, rows, device="cuda", dtype=torch.bfloat16)
        product = functools.partial(
            many.packed_wide, x, residual=None if residual is None else out, scratch=_scratch(), out=out
        )
    else:
        few.shape_of = lambda *_: case.config
        product = functools.partial(few.packed_skinny, x, gated=gated, residual=residual, out=out)
    return [functools.partial(product, weight) for _ in range(times) for weight in weights]


def run(chosen: list[Case], out: Path, facts: dict[str, object]) -> None:
    """Time each case."""
    best: dict[tuple[str, int, str], tuple[float, tuple[int, ...]]] = {}
    for (kind, shape), of_shape in itertools.groupby(
        sorted(chosen, key=lambda case: (case.kind, case.shape)), lambda case: (case.kind, case.shape)
    ):
        rows, columns, _ = SHAPES[shape]
        weight = random_packed(kind, rows, columns)
        weights = [weight] + [random_packed(kind, rows, columns) for _ in range(int(MOST_COLD / weight.nbytes))]
        for case in of_shape:
            try:
                seconds = timed(launches_of(case, weights))
            except Exception as error:  # a configuration may need more than the GPU has
                print(f"{case}: {type(error).__name__}: {str(error)[:200]}", flush=True)
                continue
            line = case._asdict() | {"us": round(seconds * 1e6, 2), "gb_per_s": round(weight.nbytes / seconds / 1e9)}
            with out.open("a") as lines:
                lines.write(json.dumps(line | facts) + "\n")
            key = (kind, case.rows, shape)
            best[key] = min(best.get(key, (1.0, ())), (seconds, case.config))
        del weights
    for kind, rows in sorted({key[:2] for key in best}):
        parts = {shape: best[kind, rows, shape] for shape in SHAPES if (kind, rows, shape) in best}
        text = ", ".join(f"{shape} {seconds * 1e6:.1f} us {config}" for shape, (seconds, config) in parts.items())
        total = sum(seconds for seconds, _ in parts.values()) * LAYERS
        print(f"{kind}, {rows} rows: {text}; {LAYERS} layers {total * 1e3:.2f} ms", flush=True)


def dense(rows: list[int], out: Path, facts: dict[str, object]) -> None:
    """Time the 16-bit products at the same shapes."""
    for count, (shape, (size, columns, gated)) in itertools.product(rows, SHAPES.items()):
        copies = 1 + int(MOST_COLD / (2 * size * columns))
        weights = [torch.randn(size, columns, device="cuda").bfloat16() for _ in range(copies)]
        x = torch.randn(count, columns, device="cuda").bfloat16()
        y = torch.zeros(count, size // 2 if gated else size, device="cuda", dtype=torch.bfloat16)
        if count > 32:
            y = torch.zeros(count, size, device="cuda", dtype=torch.bfloat16)
            product = functools.partial(_cublas, x, out=y)
        else:
            kernel = dense_matvec.matvec if count == 1 else dense_skinny.skinny
            product = functools.partial(kernel, x, gated=gated, out=y)
        launches = [functools.partial(product, weight) for _ in range(max(1, 40 // copies)) for weight in weights]
        seconds = timed(launches)
        line = {"kind": "bfloat16", "rows": count, "shape": shape, "us": round(seconds * 1e6, 2)}
        line["gb_per_s"] = round(2 * size * columns / seconds / 1e9)
        with out.open("a") as lines:
            lines.write(json.dumps(line | facts) + "\n")
        print(line, flush=True)


def _cublas(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    return torch.mm(x, weight.T, out=out)


def compile_part(chosen: list[Case]) -> None:
    """Run each case once, for its kernel to be in Triton's cache."""
    weights: dict[tuple[str, str], PackedWeight] = {}
    for case in chosen:
        rows, columns, _ = SHAPES[case.shape]
        key = case.kind, case.shape
        weights[key] = weights.get(key) or random_packed(case.kind, rows, columns)
        try:
            launches_of(case, [weights[key]])[0]()
        except Exception as error:
            print(f"{case}: {type(error).__name__}", flush=True)


def main() -> None:
    """Compile, check, time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 128, 256])
    parser.add_argument("--processes", type=int, default=12)
    parser.add_argument("--part", type=int)
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    options = parser.parse_args()
    chosen = list(cases(options.kinds, options.rows))
    if options.part is not None:
        # Shapes alike in what a kernel is compiled for are next to each other.
        chosen.sort(key=lambda case: (case.kind, case.rows, case.config))
        per_part = -(-len(chosen) // options.processes)
        compile_part(chosen[options.part * per_part : (options.part + 1) * per_part])
        return
    started = time.perf_counter()
    parts = [subprocess.Popen([sys.executable, *sys.argv, "--part", str(part)]) for part in range(options.processes)]
    for part in parts:
        part.wait()
    print(f"compiled in {time.perf_counter() - started:.0f} s", flush=True)
    wrong = [] if options.no_check else check()
    facts = gpu_circumstances()
    dense(options.rows, options.out, facts)
    run(chosen, options.out, facts)
    print(f"{time.perf_counter() - started:.0f} s in all", flush=True)
    if wrong:
        raise SystemExit("WRONG: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
