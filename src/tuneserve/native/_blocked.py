"""Reductions of long rows in two levels, which PyTorch does several times faster than in one."""

import torch
import torch.nn.functional as F

BLOCK = 128


def blocks(rows: torch.Tensor, fill: float) -> torch.Tensor:
    """Return rows (rows, length) as (rows, blocks, BLOCK), padded with ``fill``; a view where nothing is padded."""
    missing = -rows.shape[1] % BLOCK
    padded = F.pad(rows, (0, missing), value=fill) if missing else rows
    return padded.view(len(rows), -1, BLOCK)


def row_maxima(rows: torch.Tensor) -> torch.Tensor:
    """Return the largest of each row; NaN where there is one."""
    return blocks(rows, -torch.inf).amax(-1).amax(-1)


def best(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest of each row and where it first is, each (rows)."""
    parts = blocks(rows, -torch.inf)
    maxima, block = parts.amax(-1).max(-1)
    index = parts[torch.arange(len(rows), device=rows.device), block].argmax(-1)
    return maxima, block * BLOCK + index


def find(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Return where each row's running sum first exceeds a share of its whole, int64 (rows); never at a weight of 0.

    Args:
        weights: float32 (rows, length), not negative, with a sum above 0.
        uniforms: the share, float64 (rows) in [0, 1).
    """
    parts = blocks(weights, 0)
    ends = parts.sum(-1).double().cumsum(-1)
    point = _below(uniforms * ends[:, -1], ends[:, -1])
    block = torch.searchsorted(ends, point[:, None], right=True)
    begin = F.pad(ends, (1, 0)).gather(1, block)
    inner = parts[torch.arange(len(weights), device=weights.device), block[:, 0]].double().cumsum(-1)
    point = _below(point - begin[:, 0], inner[:, -1])
    return (block * BLOCK + torch.searchsorted(inner, point[:, None], right=True))[:, 0]


def _below(point: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    return torch.minimum(point, torch.nextafter(end, torch.zeros_like(end)))
