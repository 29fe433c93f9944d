"""Adapters packed for the compiled step; the layout is that of ``kernels/cpu/lora.h``."""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tuneserve.adapters import LINEARS, LinearName
from tuneserve.kernels import cpu
from tuneserve.model._lora import AdapterWeights, Delta
from tuneserve.model._pages import Pages

_ROWS, _COLUMNS = 16, 8


@dataclass(frozen=True)
class PackedAdapter:
    """The deltas of one adapter, (layers, linear layers), and the tensors that they point into, in the same order."""

    deltas: list[cpu.Delta]
    tensors: list[torch.Tensor]


class AdapterTable:
    """The deltas of all adapters, (slots, layers, linear layers), as the compiled step reads them."""

    def __init__(self, shapes: Mapping[tuple[int, LinearName], tuple[int, int]]) -> None:
        self._shapes = shapes
        self._width = len(LINEARS) * (1 + max(layer for layer, _ in shapes))
        self._slots: list[PackedAdapter] = []
        self._deltas = (cpu.Delta * 0)()

    @property
    def pointer(self) -> int:
        """Where the step finds them, until the next :meth:`put`."""
        return ctypes.addressof(self._deltas)

    def pack(self, adapter: AdapterWeights) -> PackedAdapter:
        """Pack an adapter; it may be empty."""
        packed, pages = PackedAdapter([cpu.Delta() for _ in range(self._width)], []), Pages()
        tables: dict[bytes, torch.Tensor] = {}  # layers have the same, which then stay near the processor
        for (layer, name), deltas in sorted(adapter.items(), key=lambda item: _number(*item[0])):
            outputs, _ = self._shapes[layer, name]
            *panels, table = _packed(deltas, outputs, paired=name == "gate_up")
            a, b = (pages.copy(matrix) for matrix in panels)
            parts = tables.setdefault(table.numpy().tobytes(), table)
            packed.tensors.extend((a, b, parts))
            packed.deltas[_number(layer, name)] = cpu.Delta(
                rank=b.shape[1] * b.shape[3], rows=len(a) * _ROWS, cols=a.shape[1] * a.shape[3],
                a=a.data_ptr(), b=b.data_ptr(), parts=parts.data_ptr(),
            )  # fmt: skip
        return packed

    def put(self, slot: int, adapter: PackedAdapter) -> None:
        """Let ``slot`` be this adapter; no step may be running."""
        while len(self._slots) <= slot:
            self._slots.append(self.pack({}))
        self._slots[slot] = adapter
        deltas = [delta for slot in self._slots for delta in slot.deltas]
        self._deltas = (cpu.Delta * len(deltas))(*deltas)


def _number(layer: int, name: LinearName) -> int:
    return layer * len(LINEARS) + LINEARS.index(name)


def _packed(deltas: tuple[Delta, ...], outputs: int, *, paired: bool) -> tuple[torch.Tensor, ...]:
    """Return the panels of A and B, (panels, steps, 16, columns of a step), and the parts of one linear layer."""
    rank = _COLUMNS * -(-max(len(delta.a) for delta in deltas) // _COLUMNS)
    a = torch.cat([_padded(delta.a, rank) for delta in deltas])
    a = _padded(a, _ROWS * -(-len(a) // _ROWS))
    b = torch.cat([F.pad(delta.b, (0, rank - delta.b.shape[1])) for delta in deltas])
    # Where the 16 rows of each panel of B are in the product: its panels have 16 rows of the gate, then 16 of up.
    blocks = [torch.arange(delta.first, delta.first + len(delta.b), _ROWS) // _ROWS for delta in deltas]
    place = torch.cat(blocks)
    if paired:
        half = outputs // _ROWS // 2
        place = torch.where(place < half, 2 * place, 2 * (place - half) + 1)
    inner = torch.cat([torch.full((len(own),), number * rank) for number, own in enumerate(blocks)])
    order = place.argsort()
    parts = torch.full((2 * -(-outputs // (2 * _ROWS)), 2), -1, dtype=torch.int32)
    parts[place[order]] = torch.stack((torch.arange(len(order)), inner[order]), dim=1).int()
    panels = b.view(-1, _ROWS, rank)[order].view(-1, rank)
    return _panels(a), _panels(panels), parts


def _panels(matrix: torch.Tensor) -> torch.Tensor:
    """Return (rows / 16, cols, 16, 1), in bfloat16 (rows / 16, cols / 2, 16, 2), of (rows, cols)."""
    each = 2 if matrix.dtype == torch.bfloat16 else 1
    return matrix.view(-1, _ROWS, matrix.shape[1] // each, each).transpose(1, 2)


def _padded(matrix: torch.Tensor, rows: int) -> torch.Tensor:
    return F.pad(matrix, (0, 0, 0, rows - len(matrix)))
