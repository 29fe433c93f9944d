"""The next token of each row of logits, edited, filtered and drawn, without leaving the GPU.

One program takes a row, whatever it asks for. Filters need no sort: what they surely drop is left out first, which
leaves few tokens of most distributions, and bisection over the bits of the rest finds where each filter cuts. A token
is drawn where a random number falls in the running sum of the weights in the order of the vocabulary.
"""

from dataclasses import dataclass, fields

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from tuneserve.kernels.gpu.draw import draw, edited, log_sum
from tuneserve.kernels.gpu.launch import dependent

MOST_LOGPROBS = 20
# Tokens at a time, and how many of what filters leave over are kept aside.
_BLOCK, _KEPT = 2048, 2048


@dataclass(frozen=True)
class SamplingRows:
    """What rows ask for, and what is known of them.

    Attributes:
        numbers: float64 (rows, 6): temperature (0 is greedy), top-p, min-p, and the penalties of repetition, presence
            and frequency.
        top_k: int32 (rows), 0 for all.
        asked: int32 (rows), of how many of the likeliest tokens to give log-probabilities, -1 for not even the chosen.
        counts: int32 (rows, vocabulary): twice how often a token was produced, plus one if it was seen at all; a single
            element where no row has penalties.
        penalised: int32 (rows), whether its counts count.
        edits: int32 (rows + 1), where its edits begin and end.
        tokens, bias, until: int32, float32 and int32: a token, distinct within its row, what is added to its logit, and
            how many tokens the row must have produced before it may come.
        raw: float32, room for as many.
        uniforms: float64 (rows, steps), random numbers in [0, 1).
        step, produced: int32 (rows), how many of them were used, and how many tokens were produced.
    """

    numbers: torch.Tensor
    top_k: torch.Tensor
    asked: torch.Tensor
    counts: torch.Tensor
    penalised: torch.Tensor
    edits: torch.Tensor
    tokens: torch.Tensor
    bias: torch.Tensor
    until: torch.Tensor
    raw: torch.Tensor
    uniforms: torch.Tensor
    step: torch.Tensor
    produced: torch.Tensor

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Return all in order."""
        return tuple(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class SamplingResults:
    """What :func:`sample` leaves beside the tokens, and its scratch.

    Attributes:
        logprobs: float32 (rows, 1 + 20), of the chosen token and of the likeliest, before any edit.
        likeliest: int32 (rows, 20), the latter's tokens.
        kept, kept_ids: float32 and int32 (rows, some).
    """

    logprobs: torch.Tensor
    likeliest: torch.Tensor
    kept: torch.Tensor
    kept_ids: torch.Tensor

    @classmethod
    def of(cls, rows: int, device: torch.device) -> "SamplingResults":
        """Return room for so many rows."""
        return cls(
            torch.zeros(rows, 1 + MOST_LOGPROBS, device=device),
            torch.zeros(rows, MOST_LOGPROBS, dtype=torch.int32, device=device),
            torch.zeros(rows, _KEPT, device=device),
            torch.zeros(rows, _KEPT, dtype=torch.int32, device=device),
        )


def sample_reference(
    logits: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor, asked: SamplingRows, results: SamplingResults
) -> None:
    """Do what :func:`sample` does, with sorts, and in float64 after the edits."""
    for row in torch.nonzero(lengths).flatten().tolist():
        logprobs = logits[row].double().log_softmax(-1)
        edits = slice(*asked.edits[row : row + 2].tolist())
        tokens, banned = asked.tokens[edits].long(), asked.produced[row] < asked.until[edits]
        scores = logits[row]
        scores[tokens] = (scores[tokens] + asked.bias[edits]).masked_fill(banned, -torch.inf)
        temperature, top_p, min_p, repetition, presence, frequency = asked.numbers[row].tolist()
        if asked.penalised[row]:
            counts = asked.counts[row]
            seen = torch.where(scores < 0, scores * repetition, scores / repetition)
            scores.copy_(torch.where((counts & 1) > 0, seen, scores))
            scores -= torch.where(counts > 1, presence + frequency * (counts >> 1).double(), 0.0).float()
        peak = scores.masked_fill(scores.isnan(), torch.inf).max()
        token = int(scores.argmax()) if peak.isfinite() else -1
        if token >= 0 and temperature > 0:
            scaled = (scores - peak).double() / max(temperature, 1e-30)
            token = _drawn(scaled, int(asked.top_k[row]), top_p, min_p, float(asked.uniforms[row, asked.step[row]]))
        if token >= 0 and asked.penalised[row]:
            asked.counts[row, token] = (asked.counts[row, token] | 1) + 2
        wanted = int(asked.asked[row])
        if token >= 0 and wanted >= 0:
            results.logprobs[row, 0] = logprobs[token]
            best = logprobs.sort(descending=True, stable=True)
            results.logprobs[row, 1 : 1 + wanted] = best.values[:wanted]
            results.likeliest[row, :wanted] = best.indices[:wanted].int()
        ids[row] = token
        for counter in (lengths, asked.step, asked.produced):
            counter[row] += 1


def _drawn(scores: torch.Tensor, top_k: int, top_p: float, min_p: float, uniform: float) -> int:
    weights = scores.exp()
    if 0 < top_k < len(scores):
        weights[scores < scores.topk(top_k).values[-1]] = 0
    if top_p < 1:
        ordered = weights.sort(descending=True).values
        before = ordered.cumsum(0) - ordered
        weights[weights < ordered[int((before < top_p * weights.sum()).sum()) - 1]] = 0
    weights[weights < min_p] = 0
    ends = weights.cumsum(0)
    return int((ends <= uniform * ends[-1]).sum())


def sample(
    logits: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor, asked: SamplingRows, results: SamplingResults
) -> None:
    """Choose a token per row into ``ids``, count it in ``lengths`` and in what is known of the row.

    Args:
        logits: float32 (rows, vocabulary), changed; a row whose largest is not finite gives -1.
        ids: int64 (rows).
        lengths: int32 (rows); a row of 0 is left out.
        asked: at least as many rows.
        results: at least as many rows.
    """
    rows, vocabulary = logits.shape
    _sample[(rows,)](
        logits, ids, lengths, *asked.tensors(), *(getattr(results, field.name) for field in fields(results)),
        vocabulary, STEPS=asked.uniforms.shape[1], BLOCK=_BLOCK, KEPT=_KEPT, MOST=MOST_LOGPROBS, num_warps=8,
        **dependent(_sample),
    )  # fmt: skip


@triton.jit
def _sample(
    logits, ids, lengths, numbers, top_k, asked, counts, penalised, edits, tokens, bias, until, raw, uniforms, step,
    produced, logprobs, likeliest, kept, kept_ids, vocabulary,
    STEPS: tl.constexpr, BLOCK: tl.constexpr, KEPT: tl.constexpr, MOST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + row)
    if length == 0:
        return
    source, kept, kept_ids = logits + row * vocabulary, kept + row * KEPT, kept_ids + row * KEPT
    counted = tl.load(penalised + row) * vocabulary
    counts += row * counted
    wanted = tl.load(asked + row)
    whole = 0.0
    if wanted >= 0:
        whole = log_sum(
            source, counts, vocabulary, wanted, kept, kept_ids, logprobs + row * (1 + MOST), likeliest + row * MOST,
            BLOCK, KEPT,
        )  # fmt: skip
    already = tl.load(produced + row)
    begin, end = tl.load(edits + row), tl.load(edits + row + 1)
    for start in range(begin, end, 128):
        at = start + tl.arange(0, 128)
        token = tl.load(tokens + at, mask=at < end, other=0)
        value = tl.load(source + token, mask=at < end, other=0.0)
        tl.store(raw + at, value, mask=at < end)
        banned = already < tl.load(until + at, mask=at < end, other=0)
        value += tl.load(bias + at, mask=at < end, other=0.0)
        tl.store(source + token, tl.where(banned, float("-inf"), value), mask=at < end)
    tl.debug_barrier()
    repetition = tl.load(numbers + row * 6 + 3).to(tl.float32)
    presence, frequency = tl.load(numbers + row * 6 + 4), tl.load(numbers + row * 6 + 5)
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    first_at = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, vocabulary, BLOCK):
        token = start + tl.arange(0, BLOCK)
        value = edited(source, counts, token, token < vocabulary, counted, repetition, presence, frequency)
        first_at = tl.where(value > highest, token, first_at)
        highest = tl.maximum(highest, value)
    peak = tl.max(highest, 0)
    chosen = tl.min(tl.where(highest == peak, first_at, 0x7FFFFFFF), 0)
    used = tl.load(step + row)
    temperature = tl.load(numbers + row * 6)
    if (peak == float("inf")) | (peak == float("-inf")):
        chosen = tl.full((), -1, tl.int32)
    elif temperature > 0:
        chosen = draw(
            source, counts, vocabulary, counted, repetition, presence, frequency, peak, highest,
            tl.maximum(temperature, 1e-30).to(tl.float32), tl.load(top_k + row), tl.load(numbers + row * 6 + 1),
            tl.load(numbers + row * 6 + 2), tl.load(uniforms + row * STEPS + used), kept, kept_ids, BLOCK, KEPT,
        )  # fmt: skip
    if (wanted >= 0) & (chosen >= 0):
        value = tl.load(source + chosen)
        for start in range(begin, end, 128):
            at = start + tl.arange(0, 128)
            mine = (at < end) & (tl.load(tokens + at, mask=at < end, other=-1) == chosen)
            before = tl.sum(tl.where(mine, tl.load(raw + at, mask=mine, other=0.0), 0.0), 0)
            value = tl.where(tl.max(mine.to(tl.int32), 0) > 0, before, value)
        tl.store(logprobs + row * (1 + MOST), value - whole)
    if (counted > 0) & (chosen >= 0):
        tl.store(counts + chosen, (tl.load(counts + chosen) | 1) + 2)
    tl.store(ids + row, chosen.to(tl.int64))
    tl.store(lengths + row, length + 1)
    tl.store(step + row, used + 1)
    tl.store(produced + row, already + 1)
