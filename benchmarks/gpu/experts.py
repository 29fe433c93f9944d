"""Checks a layer of experts on the GPU against float32 and times it in CUDA graphs, at the shapes of real models.

Needs PyTorch, Triton and an NVIDIA GPU; with ``--tiny`` it checks a small one, in Triton's interpreter if
``TRITON_INTERPRET=1``. Appends a line per measurement to the file that ``--out`` names; ``share`` is the weights that
the step must read, at the bandwidth that ``--bandwidth`` names, over the time.

    python benchmarks/gpu/experts.py --out experts.jsonl
"""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from kernels import DEVICE, Call, Results, check, microseconds

from tuneserve.kernels.gpu.expert_gate import ExpertGate, ExpertWeights, experts_reference
from tuneserve.kernels.gpu.route import choose_reference, route_reference
from tuneserve.model._experts import ExpertLinears, Experts
from tuneserve.model._gpu_experts import DenseGpuExperts
from tuneserve.model._gpu_linear import FEW, Norm
from tuneserve.model._linear import DenseLinear
from tuneserve.spec import ClampedSwiglu, ExpertsSpec

COPIES, CHECKED = 3, 48


@dataclass(frozen=True)
class Shape:
    """A layer, and how many rows it is measured with."""

    hidden: int
    spec: ExpertsSpec
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048, 8192)


SHAPES = {
    "qwen3-30b-a3b": Shape(2048, ExpertsSpec(count=128, per_token=8, intermediate_size=768, normalised=True)),
    "mixtral-8x7b": Shape(4096, ExpertsSpec(count=8, per_token=2, intermediate_size=14336, normalised=True)),
    "gpt-oss-20b": Shape(
        2880,
        ExpertsSpec(
            count=32, per_token=4, intermediate_size=2880, normalised=True, biases=True,
            swiglu=ClampedSwiglu(alpha=1.702, limit=7.0),
        ),
    ),
}  # fmt: skip
TINY = {"tiny": Shape(96, ExpertsSpec(count=6, per_token=2, intermediate_size=40, normalised=False), (1, 3, 40))}


def layer(shape: Shape, dtype: torch.dtype) -> Experts:
    """Return experts of random weights."""
    spec, hidden = shape.spec, shape.hidden

    def random(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, device=DEVICE, dtype=dtype).mul_(sizes[-1] ** -0.5)

    def linears(rows: int, columns: int) -> ExpertLinears:
        return ExpertLinears(random(spec.count, rows, columns), random(spec.count, rows) if spec.biases else None)

    router = DenseLinear(random(spec.count, hidden), random(spec.count) if spec.biases else None)
    inner = spec.intermediate_size
    return Experts(spec, "silu", router, linears(2 * inner, hidden), linears(hidden, inner))


def expected(shape: Shape, experts: Experts, x: torch.Tensor, norm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``x`` with what its experts come to, in float32, and who they are."""
    spec = shape.spec
    router = experts.router
    assert isinstance(router, DenseLinear)
    normed, scores = route_reference(x, norm, 1e-6, router.weight, router.bias)
    if len(x) > FEW:
        # The router of many rows takes them rounded, and of nearly equal experts may then choose another.
        bias = None if router.bias is None else router.bias.float()
        scores = torch.nn.functional.linear(normed.to(x.dtype).float(), router.weight.float(), bias)
    chosen, shares = choose_reference(scores, spec.per_token, normalised=spec.normalised)
    swiglu = spec.swiglu
    gate = ExpertGate() if swiglu is None else ExpertGate("clamped", swiglu.alpha, swiglu.limit)
    weights = (ExpertWeights(one.weight, one.bias) for one in (experts.gate_up, experts.down))
    checked = slice(0, CHECKED)
    added = experts_reference(normed[checked], chosen[checked], shares[checked], *weights, gate)
    return x[checked].float() + added, chosen


def measure(name: str, shape: Shape, results: Results, bandwidth: float) -> None:
    """Check and time a layer at each number of rows."""
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    spec = shape.spec
    layers = [layer(shape, dtype) for _ in range(COPIES)]
    each = 3 * spec.intermediate_size * shape.hidden * layers[0].down.weight.itemsize
    on_gpu = [DenseGpuExperts(one) for one in layers]
    weight = torch.rand(shape.hidden, device=DEVICE, dtype=dtype) + 0.5
    for rows in shape.rows:
        x = torch.randn(rows, shape.hidden, device=DEVICE).to(dtype)
        norm = Norm(weight, 1e-6, torch.empty_like(x))
        live = torch.ones(rows, dtype=torch.int32, device=DEVICE)
        found = x.clone()
        on_gpu[0].add(x, norm, live, found)
        wanted, chosen = expected(shape, layers[0], x, weight)
        check(found[:CHECKED], wanted, f"{name}, {rows} rows", 1e-2)
        outs = [x.clone() for _ in layers]
        calls: list[Call] = [
            partial(one.add, x, norm, live, out) for one, out in zip(on_gpu, outs, strict=True)
        ] * max(1, 12 // COPIES if rows <= 512 else 1)  # fmt: skip
        bound = len(chosen.unique()) * each
        facts = {}
        if DEVICE.type == "cuda":
            seconds = microseconds(calls) * 1e-6
            facts = {
                "share": round(bound / bandwidth / seconds, 3),
                "tflops": round(2 * rows * spec.per_token * each / layers[0].down.weight.itemsize / seconds / 1e12, 1),
            }
        results.add(calls, kernel="experts", shape=name, rows=rows, **facts)


def main() -> None:
    """Check and time all shapes, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=[])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument(
        "--bandwidth", type=float, default=3.35e12, help="bytes per second; of an H100 SXM if not given"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    options = parser.parse_args()
    torch.manual_seed(0)
    results = Results(options.out, timed=DEVICE.type == "cuda")
    shapes = TINY if options.tiny else SHAPES
    with torch.inference_mode():
        for name in options.shapes or shapes:
            measure(name, shapes[name], results, options.bandwidth)


if __name__ == "__main__":
    main()
