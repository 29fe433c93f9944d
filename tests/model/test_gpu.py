"""Protects: the decoder made of Triton's kernels computes what Transformers computes; here in Triton's interpreter."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve.checkpoint import open_checkpoint
from tuneserve.model import load_weights
from tuneserve.model._gpu import GpuDecoder
from tuneserve.model._gpu_reasons import gpu_reasons_against
from tuneserve.spec import read_spec

from .paged import Paged
from .test_families import LONG, assert_close, prompt, transformers_logits

Make = Callable[..., Path]
WIDE: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "head_dim": 32}
FAMILIES = ["llama biases", "llama 3", "mistral", "qwen3", "mixtral", "qwen3_moe", "gpt_oss"]


def gpu(directory: Path, sequences: int = 40) -> GpuDecoder:
    spec = read_spec(json.loads((directory / "config.json").read_text()))
    weights = load_weights(spec, open_checkpoint(directory), torch.float32, torch.device("cpu"))
    assert gpu_reasons_against(spec, weights) == []
    return GpuDecoder(spec, weights, 64, sequences)


@pytest.mark.parametrize(("name", "chunk"), [(name, 20) for name in FAMILIES] + [("llama", LONG)])
def test_prompts_in_chunks(name: str, chunk: int, make_family: Make) -> None:
    directory = make_family(name, **WIDE)
    prompts = [prompt(LONG, 1), prompt(5, 2), prompt(33, 3)]
    for found, expected in zip(
        Paged(gpu(directory)).logits(prompts, chunk), transformers_logits(directory, prompts), strict=True
    ):
        assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "count"), [(name, count) for name in FAMILIES for count in (1, 3)] + [("llama biases", 33)]
)
def test_decoding(name: str, count: int, make_family: Make) -> None:
    directory = make_family(name, **WIDE)
    prompts = [prompt(18 + index % 3, index) for index in range(count)]
    paged = Paged(gpu(directory), blocks=100)
    paged.decoder.forward(
        paged.batch({index: text[:-2] for index, text in enumerate(prompts)}), paged.keys, paged.values
    )
    for step in (-2, -1):
        batch = paged.batch({index: [text[step]] for index, text in enumerate(prompts)})
        found = paged.decoder.logits(paged.decoder.forward(batch, paged.keys, paged.values))
    for row, expected in zip(found, transformers_logits(directory, prompts), strict=True):
        assert_close(row, expected[-1])


def test_greedy_steps_follow_one_another(make_family: Make) -> None:
    directory = make_family("llama", **WIDE)
    prompts = [prompt(5, 1), prompt(9, 2)]
    decoder = gpu(directory)
    paged = Paged(decoder)
    decoder.forward(paged.batch({index: text[:-1] for index, text in enumerate(prompts)}), paged.keys, paged.values)
    batch = paged.batch({index: [text[-1]] for index, text in enumerate(prompts)})
    chosen = decoder.decode_greedily(batch, paged.keys, paged.values, 5).T.tolist()
    for text, tokens in zip(prompts, chosen, strict=True):
        (logits,) = transformers_logits(directory, [text + tokens])
        assert logits[len(text) - 1 : -1].argmax(-1).tolist() == tokens


def test_what_the_kernels_lack_of_experts_is_said(make_family: Make) -> None:
    directory = make_family("mixtral", **WIDE)
    spec = read_spec(json.loads((directory / "config.json").read_text()))
    weights = load_weights(spec, open_checkpoint(directory), torch.float32, torch.device("cpu"))
    assert "its experts are not quantised when they are loaded" in gpu_reasons_against(spec, weights, quantised=True)
    experts = replace(spec.per_layer[0].experts or pytest.fail(), count=2000, shared_size=8)
    changed = replace(spec, per_layer=tuple(replace(layer, experts=experts) for layer in spec.per_layer))
    reasons = gpu_reasons_against(changed, weights)
    assert reasons == ["a layer has 2000 experts, more than 1024", "it has an expert that all tokens take"]


def test_what_the_kernels_lack_is_said(make_family: Make) -> None:
    directory = make_family("gemma4 shared", head_dim=258)
    spec = read_spec(json.loads((directory / "config.json").read_text()))
    weights = load_weights(spec, open_checkpoint(directory), torch.float32, torch.device("cpu"))
    reasons = gpu_reasons_against(spec, weights)
    assert {"it has value_norm", "it has layer_input", "it has head_dim", "it has keys_from"} <= set(reasons)
    assert "head_dim is 258, not an even number up to 256" in reasons
