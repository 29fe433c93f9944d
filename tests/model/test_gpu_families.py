"""Protects: on the GPU's kernels, what families have beyond a Llama is what Transformers computes, in the interpreter.

Norms after layers, gates by GELU, heads of any even size that are rotated in part or not at all, windows that differ
from layer to layer, softcaps, sinks, and scales of embeddings, residuals, queries and logits.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tuneserve.checkpoint import open_checkpoint
from tuneserve.model import Decoder, load_weights
from tuneserve.model._gpu import GpuDecoder
from tuneserve.model._gpu_reasons import gpu_reasons_against
from tuneserve.spec import read_spec

from .paged import Paged
from .test_families import assert_close, compute, prompt, transformers_logits

Make = Callable[..., Path]
CPU = torch.device("cpu")
FAMILIES = ["smollm3 window", "ministral3", "gemma2", "gemma3", "phi3", "phi3 longrope", "granite"]


def gpu(directory: Path, context_length: int = 64) -> GpuDecoder:
    spec = read_spec(json.loads((directory / "config.json").read_text()))
    weights = load_weights(spec, open_checkpoint(directory), torch.float32, CPU)
    assert gpu_reasons_against(spec, weights) == []
    return GpuDecoder(spec, weights, context_length, 4)


def decoded(decoder: GpuDecoder, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Return all logits: of prompts in chunks together, of a token of each together, then of a token of each alone."""
    paged = Paged(decoder)
    found = [[rows] for rows in paged.logits([text[:-2] for text in prompts], 30)]
    together = {index: [text[-2]] for index, text in enumerate(prompts)}
    for parts in (together, *({index: [text[-1]]} for index, text in enumerate(prompts))):
        rows = decoder.logits(decoder.forward(paged.batch(parts), paged.keys, paged.values))
        for index, row in zip(parts, rows, strict=True):
            found[index].append(row[None].clone())
    return [torch.cat(rows) for rows in found]


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_and_decoding(name: str, make_family: Make) -> None:
    directory = make_family(name)
    # Longer than the original length of the long rope, which Transformers takes for these alone.
    prompts = [prompt(40, 1), prompt(35, 2)]
    for found, expected in zip(decoded(gpu(directory), prompts), transformers_logits(directory, prompts), strict=True):
        assert_close(found, expected)


def test_sinks(make_family: Make) -> None:
    directory = make_family("llama")
    spec = replace(read_spec(json.loads((directory / "config.json").read_text())), sinks=True)
    whole = load_weights(replace(spec, sinks=False), open_checkpoint(directory), torch.float32, CPU)
    weights = replace(whole, layers=tuple(replace(layer, sinks=torch.randn(4) * 2) for layer in whole.layers))
    assert gpu_reasons_against(spec, weights) == []
    prompts = [prompt(40, 1), prompt(7, 2), prompt(33, 3)]
    found, expected = (
        decoded(GpuDecoder(spec, weights, 64, 4), prompts),
        compute(Decoder(spec, weights, 64), prompts, 48),
    )
    for mine, wanted in zip(found, expected, strict=True):
        assert_close(mine, wanted)


def test_scales_of_residuals_are_refused_where_numbers_would_not_fit(make_family: Make) -> None:
    directory = make_family("granite")
    spec = read_spec(json.loads((directory / "config.json").read_text()))
    weights = load_weights(spec, open_checkpoint(directory), torch.float16, CPU)
    assert [reason for reason in gpu_reasons_against(spec, weights) if "float16" in reason]
    tiny = replace(spec, residual_scale=1e-9)
    assert gpu_reasons_against(tiny, weights) == ["residual_scale is 1e-09, not between 0.001 and 1000"]
