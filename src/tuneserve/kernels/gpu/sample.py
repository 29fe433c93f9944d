"""The next token of each row of logits, edited, filtered and drawn, without leaving the GPU.

A row is cut into chunks, which programs summarise and search at once; a last one draws from what they found. A token is
drawn where a random number falls in the running sum of the weights in the order of the vocabulary.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from tuneserve.kernels.gpu.draw import draw_kernel
from tuneserve.kernels.gpu.filters import gather_kernel, narrow_kernel
from tuneserve.kernels.gpu.launch import dependent, power_of_two
from tuneserve.kernels.gpu.survey import CHUNK, edit_kernel, likeliest_kernel, scratch_size, survey_kernel
from tuneserve.kernels.sampled_rows import MOST_LOGPROBS, SampledRows


class Asks(NamedTuple):
    """What some row asks for: top-k, top-p or min-p; edits or penalties; log-probabilities."""

    filters: bool = True
    edits: bool = True
    logprobs: bool = True


ALL = Asks()


@dataclass(frozen=True)
class SamplingRows(SampledRows):
    """Those on the device, of which some change.

    Attributes:
        raw: float32 (room), what the logits of the edited tokens were.
        step: int32 (rows), how many of the random numbers were used.
    """

    raw: torch.Tensor
    step: torch.Tensor


@dataclass(frozen=True)
class SamplingResults:
    """What :func:`sample` leaves beside the tokens, and its scratch.

    Attributes:
        logprobs: float32 (rows, 1 + 20), of the chosen token and of the likeliest, before any edit.
        likeliest: int32 (rows, 20), the latter's tokens.
        scratch: float32 (rows, some).
    """

    logprobs: torch.Tensor
    likeliest: torch.Tensor
    scratch: torch.Tensor

    @classmethod
    def of(cls, rows: int, vocabulary: int, device: torch.device) -> "SamplingResults":
        """Return room for so many rows."""
        return cls(
            torch.zeros(rows, 1 + MOST_LOGPROBS, device=device),
            torch.zeros(rows, MOST_LOGPROBS, dtype=torch.int32, device=device),
            torch.zeros(rows, scratch_size(_padded(vocabulary)), device=device),
        )


def _chunks(vocabulary: int) -> int:
    size: int = CHUNK.value
    return -(-vocabulary // size)


def _padded(vocabulary: int) -> int:
    return power_of_two(_chunks(vocabulary))


def sample_reference(
    logits: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor, asked: SamplingRows, results: SamplingResults
) -> None:
    """Do what :func:`sample` does, with sorts, and in float64 after the edits."""
    for row in torch.nonzero(lengths).flatten().tolist():
        logprobs = logits[row].double().log_softmax(-1)
        begin, room = asked.edits[row : row + 2].tolist()
        edits = slice(begin, begin + int(asked.used[row]))
        tokens, counts = asked.tokens[edits].long(), asked.counts[edits]
        temperature, top_p, min_p, repetition, presence, frequency = asked.numbers[row].tolist()
        scores, before = logits[row], logits[row, tokens]
        some = before + asked.bias[edits]
        seen = torch.where(some < 0, some * repetition, some / repetition)
        some = torch.where((counts & 1) > 0, seen, some)
        some -= torch.where(counts > 1, presence + frequency * (counts >> 1).double(), 0.0).float()
        scores[tokens] = some.masked_fill(asked.produced[row] < asked.until[edits], -torch.inf)
        peak = scores.masked_fill(scores.isnan(), torch.inf).max()
        none = -2 if peak < 0 and bool((before > -torch.inf).any()) else -1
        token = int(scores.argmax()) if peak.isfinite() else none
        if token >= 0 and temperature > 0:
            scaled = (scores - peak).double() / max(temperature, 1e-30)
            token = _drawn(scaled, int(asked.top_k[row]), top_p, min_p, float(asked.uniforms[row, asked.step[row]]))
        if token >= 0 and asked.penalised[row]:
            _count(asked, row, begin, room, token)
        wanted = int(asked.asked[row])
        if token >= 0 and wanted >= 0:
            results.logprobs[row, 0] = logprobs[token]
        if wanted > 0:
            best = logprobs.sort(descending=True, stable=True)
            results.logprobs[row, 1 : 1 + wanted] = best.values[:wanted]
            results.likeliest[row, :wanted] = best.indices[:wanted].int()
        ids[row] = token
        for counter in (lengths, asked.step, asked.produced):
            counter[row] += 1


def _count(asked: SamplingRows, row: int, begin: int, room: int, token: int) -> None:
    end = begin + int(asked.used[row])
    place = next((place for place in range(begin, end) if asked.tokens[place] == token), end)
    if place == end < room:
        asked.tokens[place], asked.bias[place], asked.until[place], asked.counts[place] = token, 0, 0, 0
        asked.used[row] += 1
    if place < room:
        asked.counts[place] = (asked.counts[place] | 1) + 2


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
    logits: torch.Tensor,
    ids: torch.Tensor,
    lengths: torch.Tensor,
    asked: SamplingRows,
    results: SamplingResults,
    asks: Asks = ALL,
) -> None:
    """Choose a token per row into ``ids``, count it in ``lengths`` and in what is known of the row.

    Args:
        logits: float32 (rows, vocabulary), changed; a row whose largest is not finite gives -1, or -2 where edits left
            none.
        ids: int64 (rows).
        lengths: int32 (rows); a row of 0 is left out.
        asked: at least as many rows; what has no room among its edits is not counted.
        results: at least as many rows.
        asks: what is not asked for by any row is not launched.
    """
    rows, vocabulary = logits.shape
    chunks, padded, scratch = _chunks(vocabulary), _padded(vocabulary), results.scratch
    numbers, stride = asked.numbers, scratch.shape[1]
    many, one = (rows, chunks), (rows,)
    same = {"P": padded, "num_warps": 8, **dependent(survey_kernel)}
    if asks.logprobs:
        survey_kernel[many](logits, lengths, numbers, asked.asked, scratch, vocabulary, stride, RAW=True, **same)
        likeliest_kernel[one](
            logits, lengths, asked.asked, scratch, results.logprobs, results.likeliest, vocabulary, chunks, stride,
            MOST=MOST_LOGPROBS, **same,
        )  # fmt: skip
    if asks.edits:
        edit_kernel[one](
            logits, lengths, numbers, asked.edits, asked.used, asked.tokens, asked.bias, asked.until, asked.counts,
            asked.raw, asked.produced, vocabulary, BLOCK=1024, num_warps=8, **dependent(edit_kernel),
        )  # fmt: skip
    survey_kernel[many](logits, lengths, numbers, asked.asked, scratch, vocabulary, stride, RAW=False, **same)
    if asks.filters:
        found = (logits, lengths, numbers, asked.top_k, scratch, vocabulary, chunks, stride)
        narrow_kernel[many](*found, ROUND=0, **same)
        narrow_kernel[many](*found, ROUND=1, **same)
        gather_kernel[many](*found, **same)
    draw_kernel[one](
        logits, ids, lengths, numbers, asked.top_k, asked.asked, asked.penalised, asked.edits, asked.used, asked.tokens,
        asked.bias, asked.until, asked.counts, asked.raw, asked.uniforms, asked.step, asked.produced, results.logprobs,
        scratch, vocabulary, chunks, stride, STEPS=asked.uniforms.shape[1], MOST=MOST_LOGPROBS, FILTERED=asks.filters,
        EDITED=asks.edits, LOGPROBS=asks.logprobs, **same,
    )  # fmt: skip
