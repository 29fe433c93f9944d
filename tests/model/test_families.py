"""Protects: every family computes what Transformers computes, in one piece, in chunks, token by token, and batched."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve.checkpoint import open_checkpoint
from tuneserve.kernels.attention import attend
from tuneserve.model import Decoder, load_weights
from tuneserve.spec import read_spec

from .families import FAMILIES

Make = Callable[..., Path]
# Of the largest logit; sums are in another order than Transformers'.
TOLERANCE = 1e-4
LONG = 48


class Context:
    """The simplest cache: each sequence's keys and values as they came, attended to with a mask for each."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self._keys: dict[tuple[int, int], torch.Tensor] = {}
        self._values: dict[tuple[int, int], torch.Tensor] = {}

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, window: int | None, **how: Any
    ) -> torch.Tensor:
        out, begin = [], 0
        for sequence, count in enumerate(self.rows):
            if count == 0:
                continue
            rows = slice(begin, begin + count)
            keys = self._grown(self._keys, layer, sequence, key[rows])
            values = self._grown(self._values, layer, sequence, value[rows])
            length = len(keys)
            last = torch.arange(length - count, length)[:, None]
            seen = (torch.arange(length) <= last) & (torch.arange(length) > last - (window or length))
            mask = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
            context = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
            out.append(attend(query[None, rows], *context, mask[None], **how)[0])
            begin += count
        return torch.cat(out)

    def _grown(
        self, cache: dict[tuple[int, int], torch.Tensor], layer: int, sequence: int, new: torch.Tensor
    ) -> torch.Tensor:
        old = cache.get((layer, sequence))
        cache[layer, sequence] = new if old is None else torch.cat((old, new))
        return cache[layer, sequence]


def open_decoder(directory: Path, context_length: int | None = None) -> Decoder:
    spec = read_spec(json.loads((directory / "config.json").read_text()))
    weights = load_weights(spec, open_checkpoint(directory), torch.float32, torch.device("cpu"))
    return Decoder(spec, weights, context_length or spec.context_length)


def compute(decoder: Decoder, prompts: list[list[int]], chunk: int) -> list[torch.Tensor]:
    """Return each prompt's logits, computed in one batch, ``chunk`` tokens of each at a time."""
    context, found = Context(), [[] for _ in prompts]  # type: ignore[var-annotated]
    for begin in range(0, max(map(len, prompts)), chunk):
        parts = [prompt[begin : begin + chunk] for prompt in prompts]
        context.rows = [len(part) for part in parts]
        positions = [begin + index for part in parts for index in range(len(part))]
        ids = torch.tensor([token for part in parts for token in part])
        logits = decoder.logits(decoder.forward(ids, torch.tensor(positions), context))
        for mine, part in zip(found, torch.split(logits, context.rows), strict=True):
            mine.append(part)
    return [torch.cat(mine) for mine in found]


def transformers_logits(
    directory: Path, prompts: list[list[int]], dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="eager").eval()
    with torch.inference_mode():
        return [model(torch.tensor([prompt]), use_cache=False).logits[0] for prompt in prompts]


def prompt(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 96, (length,), generator=generator).tolist()


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(name: str, make_family: Make) -> None:
    directory = make_family(name)
    # Beyond every window and every original length.
    prompts = [prompt(LONG, 1), prompt(5, 2), prompt(33, 3)]
    short = name == "phi3 longrope"
    if short:
        prompts = [part[:32] for part in prompts]
    decoder = open_decoder(directory, 32 if short else None)
    expected = transformers_logits(directory, prompts)
    for chunk in (LONG, 7, 1):
        for found, wanted in zip(compute(decoder, prompts, chunk), expected, strict=True):
            assert_close(found, wanted)


def test_a_long_context_takes_the_long_factors(make_family: Make) -> None:
    directory = make_family("phi3 longrope")
    text = prompt(LONG, 1)
    (found,), (expected,) = compute(open_decoder(directory), [text], 7), transformers_logits(directory, [text])
    assert_close(found, expected)
