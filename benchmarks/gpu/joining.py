"""Checks and times what makes the rows of a product beside their shrinks to the ranks of one adapter.

Next to it stand what makes the rows alone, and cuBLAS's products of both. Options and output: see ``kernels.py``.

    python benchmarks/gpu/joining.py --rows 128 256 --out joining.jsonl
"""

from functools import partial

import torch
from kernels import COPIES, DEVICE, LAUNCHES, Call, Linear, Results, Sizes, check, run

from tuneserve.kernels.gpu.gate import gate
from tuneserve.kernels.gpu.lora_join import (
    lora_join,
    lora_join_gate,
    lora_join_gate_reference,
    lora_join_norm_reference,
    lora_join_reference,
)
from tuneserve.kernels.gpu.lora_rows import LoraRows
from tuneserve.kernels.gpu.norm import norm


def measure(sizes: Sizes, results: Results) -> None:
    """Check and time what makes rows, then the products of them."""
    for name, (columns, rows, ends, gated) in sizes.linears.items():
        linear = Linear(columns, rows, ends, gated, sizes.rank, 1)
        width = linear.joined[0].shape[1]
        for count in (each for each in sizes.rows if each > 32):
            x = torch.randn(count, columns, device=DEVICE).to(linear.norm.dtype)
            halves = torch.randn(count, 2 * columns, device=DEVICE).to(linear.norm.dtype)
            alone, beside = torch.empty_like(x), x.new_empty(count, width)
            taken = LoraRows.of(count, [linear.few])
            taken.put([0] * count)
            few, slots = linear.few, taken.slots
            calls: dict[str, tuple[Call, torch.Tensor | None]] = {
                "norm": (partial(norm, x, linear.norm, 1e-5, alone), None),
                "join norm": (
                    partial(lora_join, x, few, taken, beside, norm=linear.norm, eps=1e-5),
                    lora_join_norm_reference(x, linear.norm, 1e-5, few, slots),
                ),
                "join": (partial(lora_join, x, few, taken, beside), lora_join_reference(x, few, slots)),
                "gate": (partial(gate, halves, alone), None),
                "join gate": (
                    partial(lora_join_gate, halves, few, taken, beside), lora_join_gate_reference(halves, few, slots),
                ),
            }  # fmt: skip
            for kernel, (call, expected) in calls.items():
                if expected is not None:
                    check(call(), expected, f"{kernel}, {name}, {count} rows", 1e-2)
                results.add([call] * LAUNCHES, kernel=kernel, columns=columns, shrunk=few.a.shape[1], rows=count)
            out = x.new_empty(count, rows)
            for kernel, weights, source in (("product", linear.weights, x), ("product beside", linear.joined, beside)):
                products = [partial(torch.mm, source, weights[index % COPIES].T, out=out) for index in range(LAUNCHES)]
                results.add(products, kernel=kernel, linear=name, rows=count)
                added = [partial(out.addmm_, source, weights[index % COPIES].T) for index in range(LAUNCHES)]
                results.add(added, kernel=f"{kernel}, added", linear=name, rows=count)
        del linear


if __name__ == "__main__":
    run({"joining": measure}, __doc__)
