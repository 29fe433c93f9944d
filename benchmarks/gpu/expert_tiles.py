"""Times the two products of a layer of experts with tiles of several shapes, to choose them by.

Needs PyTorch, Triton and an NVIDIA GPU. Appends a line per measurement to the file that ``--out`` names; ``bound_us``
is what reading the weights of the experts that are taken costs, or the operations where these cost more.

    python benchmarks/gpu/expert_tiles.py --out expert_tiles.jsonl
"""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from experts import SHAPES, Shape, layer
from kernels import DEVICE, Call, Results

from tuneserve.kernels.gpu import expert_row, expert_rows
from tuneserve.kernels.gpu.expert_gate import ExpertGate, ExpertWeights
from tuneserve.kernels.gpu.group import Groups, group
from tuneserve.kernels.gpu.route import Routes, choose

# Rows of the weight, columns, warps; then by the rows of a tile, with stages too.
ROW = ((4, 512, 4), (8, 512, 4), (4, 1024, 4), (2, 1024, 4), (8, 256, 4), (4, 512, 8), (2, 512, 2))
TILES = {
    16: ((64, 128, 4, 3), (64, 64, 4, 4), (64, 128, 4, 4), (64, 256, 4, 2), (128, 64, 4, 4)),
    32: ((64, 128, 4, 3), (64, 64, 4, 4), (128, 64, 4, 4)),
    64: ((64, 64, 4, 4), (128, 64, 8, 3), (64, 128, 4, 3), (128, 64, 4, 4)),
    128: ((64, 64, 8, 4), (128, 64, 8, 3), (128, 64, 8, 4), (64, 64, 4, 4), (128, 128, 8, 2)),
}
ROWS = (2, 8, 32, 128, 512, 2048, 8192)
BANDWIDTH, OPERATIONS = 3.35e12, 8e14


class Products:
    """The products of one layer's rows, with two copies of the weights in turn."""

    def __init__(self, shape: Shape, rows: int, copies: list[tuple[ExpertWeights, ExpertWeights]]) -> None:
        spec, self.copies, self.gate = shape.spec, copies, ExpertGate()
        self.random = partial(torch.randn, device=DEVICE, dtype=torch.bfloat16)
        self.x, pairs = self.random(rows, shape.hidden), rows * spec.per_token
        self.inner, self.products = self.random(pairs, spec.intermediate_size), self.random(pairs, shape.hidden)
        self.routes = Routes.of(rows, spec.per_token, torch.zeros(spec.count, dtype=torch.int32, device=DEVICE))
        live = torch.ones(rows, dtype=torch.int32, device=DEVICE)
        choose(torch.randn(rows, spec.count, device=DEVICE), live, self.routes, normalised=True)
        used = int((self.routes.counts > 0).sum())
        size = spec.intermediate_size * shape.hidden * 2
        self.bound = max(used * size / BANDWIDTH, pairs * size / OPERATIONS)

    def row(self, shape: tuple[int, int, int]) -> Iterator[tuple[str, int, list[Call]]]:
        """Yield the products of one row with programs of a shape; how many halves are in each."""
        firsts: list[Call] = [
            partial(expert_row.row_gate_up, self.x, self.routes, first, self.gate, self.inner)
            for first, _ in self.copies
        ]
        seconds: list[Call] = [
            partial(expert_row.row_down, self.inner, self.routes, second, self.x) for _, second in self.copies
        ]
        with patch.object(expert_row, "gate_up_shape", lambda: shape):
            yield "row_gate_up", 2, firsts * 8
        with patch.object(expert_row, "down_shape", lambda _: shape):
            yield "row_down", 1, seconds * 8

    def tiled(self, tile: int, shape: tuple[int, int, int, int]) -> Iterator[tuple[str, int, list[Call]]]:
        """Yield the products of many rows with tiles of a shape."""
        groups = Groups.of(len(self.inner), len(self.routes.counts), tile, DEVICE)
        group(self.routes, groups)
        with patch.object(expert_rows, "shape_of", lambda _: shape):
            yield "rows_gate_up", 2, [
                partial(expert_rows.rows_gate_up, self.x, groups, first, self.gate, self.inner)
                for first, _ in self.copies
            ]  # fmt: skip
            yield "rows_down", 1, [
                partial(expert_rows.rows_down, self.inner, self.routes, groups, second, self.products)
                for _, second in self.copies
            ]  # fmt: skip


def measure(name: str, shape: Shape, results: Results) -> None:
    """Time everything at one shape of a layer; tiles that are at least a quarter full on average."""
    layers = [layer(shape, torch.bfloat16) for _ in range(2)]
    copies = [(ExpertWeights(one.gate_up.weight), ExpertWeights(one.down.weight)) for one in layers]

    def add(products: Products, found: Iterator[tuple[str, int, list[Call]]], **facts: Any) -> None:
        for kernel, halves, calls in found:
            bound = round(halves * products.bound * 1e6, 1)
            results.add(calls, kernel=kernel, shape=name, rows=len(products.x), bound_us=bound, **facts)

    one = Products(shape, 1, copies)
    for program in ROW:
        add(one, one.row(program), program=program)
    for rows in ROWS:
        many, average = Products(shape, rows, copies), rows * shape.spec.per_token / shape.spec.count
        for tile, shapes in TILES.items():
            if tile == 16 or tile / 4 <= average <= tile * 8:
                for program in shapes:
                    add(many, many.tiled(tile, program), tile=tile, program=program)


def main() -> None:
    """Time all shapes, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["qwen3-30b-a3b", "mixtral-8x7b"])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    options = parser.parse_args()
    torch.manual_seed(0)
    results = Results(options.out, timed=True)
    with torch.inference_mode():
        for name in options.shapes:
            measure(name, SHAPES[name], results)


if __name__ == "__main__":
    main()
