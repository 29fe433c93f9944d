"""The router of a layer of experts (arXiv:1701.06538): which experts each row takes, and how much of each.

For a few rows one kernel norms them, scores all experts and chooses; for many, the scores come of a product before.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.launch import dependent, power_of_two

# Experts that a program scores, and columns at a time.
_SCORED, _COLUMNS = 4, 1024


@dataclass(frozen=True)
class Routes:
    """What the router says of the rows of a step; a row of no token takes no experts.

    Attributes:
        experts: int32 (rows, per_token), -1 for none.
        shares: float32 (rows, per_token), how much of each expert's output is added.
        places: int32 (rows, per_token), the row's place among those of the expert, in no order.
        counts: int32 (experts), how many rows each has; zero before rows are routed.
    """

    experts: torch.Tensor
    shares: torch.Tensor
    places: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def of(cls, rows: int, per_token: int, counts: torch.Tensor) -> "Routes":
        """Return memory for so many rows."""
        experts, places = (counts.new_empty(rows, per_token) for _ in range(2))
        return cls(experts, experts.new_empty(experts.shape, dtype=torch.float32), places, counts)


@dataclass(frozen=True)
class RouteScratch:
    """What :func:`route` uses: ``scores`` float32 (rows, experts), ``arrived`` int32 (rows), zero between launches."""

    scores: torch.Tensor
    arrived: torch.Tensor

    @classmethod
    def of(cls, rows: int, experts: int, device: torch.device) -> "RouteScratch":
        """Return scratch for up to so many rows."""
        return cls(torch.empty(rows, experts, device=device), torch.zeros(rows, dtype=torch.int32, device=device))


def choose_reference(scores: torch.Tensor, per_token: int, *, normalised: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the experts and the shares of :func:`choose` for ``scores`` (rows, experts) of tokens."""
    best, experts = scores.float().topk(per_token)
    if normalised:
        return experts.int(), best.softmax(-1)
    return experts.int(), scores.float().softmax(-1).gather(-1, experts)


def route_reference(
    x: torch.Tensor, norm: torch.Tensor, eps: float, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normed rows and the scores that :func:`route` chooses by, both in float32."""
    normed = F.rms_norm(x.float(), x.shape[-1:], norm.float(), eps)
    return normed, F.linear(normed, weight.float(), None if bias is None else bias.float())


def choose(scores: torch.Tensor, live: torch.Tensor, routes: Routes, *, normalised: bool) -> None:
    """Choose the experts of many rows.

    Args:
        scores: float32 (rows, experts).
        live: integers (rows), above zero for rows that are tokens.
        routes: written; rows are counted.
        normalised: shares are the softmax over the chosen, else over all.
    """
    rows, experts = scores.shape
    _choose[(rows,)](
        scores, live, routes.experts, routes.shares, routes.places, routes.counts, EXPERTS=experts,
        LANES=power_of_two(experts), TAKEN=routes.experts.shape[1], PLACES=power_of_two(routes.experts.shape[1]),
        NORMALISED=normalised, num_warps=1 if experts <= 256 else 4, **dependent(_choose),
    )  # fmt: skip


def route(
    x: torch.Tensor,
    norm: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    live: torch.Tensor,
    scratch: RouteScratch,
    routes: Routes,
    normed: torch.Tensor,
    *,
    normalised: bool,
) -> None:
    """Norm a few rows, score all experts, and choose; scores are in float32 and come of the norm before its rounding.

    Args:
        x: (rows, hidden).
        norm: (hidden), the weight of the RMS norm.
        weight: (experts, hidden), contiguous.
        bias: (experts).
        live: integers (rows), above zero for rows that are tokens.
        routes: written; rows are counted, but not where there is only one.
        normed: (rows, hidden), written.
        normalised: shares are the softmax over the chosen, else over all.
    """
    assert x.is_contiguous() and weight.is_contiguous()
    (rows, hidden), experts = x.shape, len(weight)
    _route[(rows, triton.cdiv(experts, _SCORED))](
        x, norm, weight, bias, live, scratch.scores, scratch.arrived, normed, routes.experts, routes.shares,
        routes.places, routes.counts, hidden, eps, EXPERTS=experts, SCORED=_SCORED,
        BLOCK=min(_COLUMNS, power_of_two(hidden)), BIAS=bias is not None, LANES=power_of_two(experts),
        TAKEN=routes.experts.shape[1], PLACES=power_of_two(routes.experts.shape[1]), NORMALISED=normalised,
        COUNTED=rows > 1, num_warps=4, **dependent(_route),
    )  # fmt: skip


@triton.jit
def _choose(
    scores, live, experts, shares, places, counts, EXPERTS: tl.constexpr, LANES: tl.constexpr, TAKEN: tl.constexpr,
    PLACES: tl.constexpr, NORMALISED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    score = tl.load(scores + row * EXPERTS + lane, mask=lane < EXPERTS, other=float("-inf"))
    _take(score, row, live, experts, shares, places, counts, EXPERTS, LANES, TAKEN, PLACES, NORMALISED, True)


@triton.jit
def _take(
    score, row, live, experts, shares, places, counts, EXPERTS: tl.constexpr, LANES: tl.constexpr, TAKEN: tl.constexpr,
    PLACES: tl.constexpr, NORMALISED: tl.constexpr, COUNTED: tl.constexpr,
):  # fmt: skip
    """Choose by the scores (LANES) of one row; of equal ones the first."""
    lane, place = tl.arange(0, LANES), tl.arange(0, PLACES)
    # What is not a number is in no order, and there must be an expert all the same.
    score = tl.where(score == score, score, float("-inf"))
    highest = tl.max(score, 0)
    free = lane < EXPERTS
    best = tl.full((PLACES,), float("-inf"), tl.float32)
    found = tl.zeros((PLACES,), tl.int32)
    for index in range(TAKEN):
        value = tl.max(tl.where(free, score, float("-inf")), 0)
        expert = tl.min(tl.where(free & (score == value), lane, LANES), 0)
        best = tl.where(place == index, value, best)
        found = tl.where(place == index, expert, found)
        free = free & (lane != expert)
    share = tl.exp(best - highest)
    share = share / tl.sum(share if NORMALISED else tl.exp(score - highest), 0)
    real = place < TAKEN
    taken = place < tl.where(tl.load(live + row) > 0, TAKEN, 0)
    tl.store(experts + row * TAKEN + place, tl.where(taken, found, -1), mask=real)
    tl.store(shares + row * TAKEN + place, share, mask=real)
    if COUNTED:
        before = tl.atomic_add(counts + found, 1, mask=taken, sem="relaxed")
        tl.store(places + row * TAKEN + place, before, mask=taken)


@triton.jit
def _route(
    x, norm, weight, bias, live, scores, arrived, normed, experts, shares, places, counts, hidden, eps,
    EXPERTS: tl.constexpr, SCORED: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr, LANES: tl.constexpr,
    TAKEN: tl.constexpr, PLACES: tl.constexpr, NORMALISED: tl.constexpr, COUNTED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    scored = part * SCORED + tl.arange(0, SCORED)
    column = tl.arange(0, BLOCK)
    inside = scored < EXPERTS
    source = weight + scored[:, None] * hidden + column[None, :]
    # The first weights are on their way before the kernel that makes ``x`` is done, and always the next ones.
    w = tl.load(source, mask=inside[:, None] & (column < hidden)[None, :], other=0.0)
    if PDL:
        gdc_wait()
    total = tl.zeros((SCORED, BLOCK), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, hidden, BLOCK):
        here = start + column < hidden
        value = tl.load(x + row * hidden + start + column, mask=here, other=0.0).to(tl.float32)
        squares += value * value
        value *= tl.load(norm + start + column, mask=here, other=0.0).to(tl.float32)
        ahead = inside[:, None] & (start + BLOCK + column < hidden)[None, :]
        next_w = tl.load(source + start + BLOCK, mask=ahead, other=0.0)
        total += w.to(tl.float32) * value[None, :]
        w = next_w
    scale = 1.0 / tl.sqrt(tl.sum(squares, 0) / hidden + eps)
    score = tl.sum(total, 1) * scale
    if BIAS:
        score += tl.load(bias + scored, mask=inside, other=0.0).to(tl.float32)
    tl.store(scores + row * EXPERTS + scored, score, mask=inside)
    if part == 0:
        for start in range(0, hidden, BLOCK):
            here = start + column < hidden
            value = tl.load(x + row * hidden + start + column, mask=here, other=0.0).to(tl.float32)
            value = value * scale * tl.load(norm + start + column, mask=here, other=0.0).to(tl.float32)
            tl.store(normed + row * hidden + start + column, value.to(normed.dtype.element_ty), mask=here)
    tl.debug_barrier()
    before = tl.atomic_add(arrived + row, 1, sem="acq_rel")
    if before + 1 < tl.num_programs(1):
        return
    lane = tl.arange(0, LANES)
    score = tl.load(
        scores + row * EXPERTS + lane, mask=lane < EXPERTS, other=float("-inf"), cache_modifier=".cg"
    )  # fmt: skip
    _take(score, row, live, experts, shares, places, counts, EXPERTS, LANES, TAKEN, PLACES, NORMALISED, COUNTED)
    tl.store(arrived + row, 0)
