"""Protects: the compiled step computes what Transformers computes, and a row's bits depend on nothing beside it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve.adapters import linear_shapes
from tuneserve.checkpoint import open_checkpoint
from tuneserve.kernels import cpu
from tuneserve.kernels.cpu import Kind
from tuneserve.model import CompiledDecoder, Decoder, Weights, load_weights, reasons_against
from tuneserve.model._lora import Delta
from tuneserve.spec import ModelSpec, read_spec

from .families import FAMILIES, LONGROPE
from .paged import Paged
from .test_families import LONG, assert_close, compute, prompt, transformers_logits

Make = Callable[..., Path]
# The widest vectors are 16 floats; the smallest models of other tests are narrower.
WIDE: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 4}
CHANGES: dict[str, dict[str, Any]] = {
    "ministral": {"head_dim": 16},
    "ministral3": {"head_dim": 16},
    "qwen3 bias": {"head_dim": 16},
    "phi3 longrope": {
        "rope_parameters": {name: value * 2 if isinstance(value, list) else value for name, value in LONGROPE.items()}
    },
}
# Each leaves out more instructions; those that this processor has, too.
NEEDED = {"x86-64": "sse2", "x86-64-v3": "avx2", "x86-64-v4": "avx512vl"}
FEATURES = Path("/proc/cpuinfo").read_text().split()
OLDER = [architecture for architecture, feature in NEEDED.items() if feature in FEATURES]
EXPERTS = [name for name, (_, options) in FAMILIES.items() if any("experts" in option for option in options)]
# States, and layers whose sizes differ; tests/native/test_states.py sees them refused.
EAGER = [name for name in FAMILIES if name.startswith(("qwen3_5", "gemma4"))]
PROMPTS = [prompt(LONG, 1), prompt(5, 2), prompt(33, 3), prompt(17, 4)]


def load(directory: Path, dtype: torch.dtype = torch.float32) -> tuple[ModelSpec, Weights]:
    spec = read_spec(json.loads((directory / "config.json").read_text()))
    return spec, load_weights(spec, open_checkpoint(directory), dtype, torch.device("cpu"))


def compiled(directory: Path, dtype: torch.dtype = torch.float32, threads: int = 1, **how: Any) -> CompiledDecoder:
    spec, weights = load(directory, dtype)
    assert reasons_against(spec, weights) == []
    return CompiledDecoder(spec, weights, LONG, threads=threads, **how)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in EXPERTS + EAGER])
def test_logits_are_those_of_transformers_whatever_the_chunks(name: str, make_family: Make) -> None:
    directory = make_family(name, **WIDE | CHANGES.get(name, {}))
    decoder = compiled(directory)
    whole = Paged(decoder).logits(PROMPTS, LONG)
    texts = PROMPTS if name != "phi3 longrope" else PROMPTS[:1]
    for found, expected in zip(whole, transformers_logits(directory, texts), strict=False):
        assert_close(found, expected)
    for chunk in (7, 1):
        for found, same in zip(Paged(decoder).logits(PROMPTS, chunk), whole, strict=True):
            assert torch.equal(found, same)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [None, Kind.INT8, Kind.INT4])
def test_a_sequence_gets_the_same_bits_alone_and_in_any_batch(
    dtype: torch.dtype, bits: Kind | None, make_family: Make
) -> None:
    directory = make_family("llama", hidden_size=64, intermediate_size=96, head_dim=32)
    decoder, other = compiled(directory, dtype, bits=bits), compiled(directory, dtype, threads=2, bits=bits)
    prompts = [prompt(1 + 5 * seed % LONG, seed) for seed in range(14)]
    together = Paged(other, blocks=128).logits(prompts, 3)
    for text, found in zip(prompts, together, strict=True):
        (alone,) = Paged(decoder).logits([text], LONG)
        assert torch.equal(alone, found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_nearer_to_float32_than_transformers(dtype: torch.dtype, make_family: Make) -> None:
    directory = make_family("llama", **WIDE)
    exact, rounded = (torch.cat(transformers_logits(directory, PROMPTS, kind)) for kind in (torch.float32, dtype))
    found = torch.cat(Paged(compiled(directory, dtype)).logits(PROMPTS, 7))
    assert (found - exact).square().mean() < (rounded.float() - exact).square().mean()


@pytest.mark.parametrize("architecture", OLDER)
@pytest.mark.parametrize("bits", [None, Kind.INT8, Kind.INT4])
def test_older_processors_compute_the_same(architecture: str, bits: Kind | None, make_family: Make) -> None:
    directory = make_family("llama", hidden_size=64, intermediate_size=96, head_dim=32)
    library = cpu.load(cpu.build(architecture))
    for dtype, worst in ((torch.float32, 1e-4), (torch.float16, 5e-3), (torch.bfloat16, 5e-2)):
        here, there = (
            Paged(compiled(directory, dtype, bits=bits, library=one)).logits(PROMPTS, 7) for one in (None, library)
        )
        for found, expected in zip(there, here, strict=True):
            # Quantised activations may fall to the other side of a half.
            assert (found - expected).abs().max() <= (worst if bits is None else 5e-2) * expected.abs().max()


@pytest.mark.parametrize("architecture", OLDER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_adapters_add_the_same_on_older_processors_whatever_is_beside_them(
    architecture: str, dtype: torch.dtype, make_family: Make
) -> None:
    directory, library = (
        make_family("llama", hidden_size=64, intermediate_size=96, head_dim=32),
        cpu.build(architecture),
    )
    here, there = compiled(directory, dtype), compiled(directory, dtype, threads=2, library=cpu.load(library))
    spec, generator = here.spec, torch.Generator().manual_seed(0)
    for slot, rank in enumerate((16, 5)):
        adapter = {
            place: (
                Delta(
                    0, *(0.3 * torch.randn(shape, generator=generator).to(dtype) for shape in ((rank, n), (m, rank)))
                ),
            )
            for place, (m, n) in linear_shapes(spec).items()
        }
        for decoder in (here, there):
            decoder.put_adapter(slot, decoder.prepare_adapter(adapter))

    def hidden(decoder: CompiledDecoder, asked: dict[int, tuple[list[int], int]]) -> tuple[torch.Tensor, ...]:
        paged = Paged(decoder, blocks=128)
        batch = paged.batch({key: ids for key, (ids, _) in asked.items()})
        slots = torch.tensor([slot for _, slot in asked.values()], dtype=torch.int32)
        batch.adapters = slots.repeat_interleave(torch.tensor(batch.counts))
        return torch.split(decoder.forward(batch, paged.keys, paged.values), batch.counts)

    asked = {index: (prompt(1 + 7 * index % LONG, index), index % 3 - 1) for index in range(9)}
    found, expected, plain = hidden(there, asked), hidden(here, asked), hidden(there, {9: (PROMPTS[0], -1)})
    tolerance = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype]
    for one, other, request in zip(found, expected, asked.values(), strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()
        assert torch.equal(hidden(there, {0: request})[0], one)
    adapted = [hidden(there, {0: (PROMPTS[0], slot)})[0] for slot in (0, 1)]
    assert all((one - plain[0]).abs().max() > 0.1 for one in adapted)


def test_sinks_take_their_part(make_family: Make) -> None:
    spec, weights = load(make_family("llama", **WIDE))
    layers = tuple(replace(layer, sinks=torch.linspace(-2, 2, spec.heads)) for layer in weights.layers)
    weights = replace(weights, layers=layers)
    eager = compute(Decoder(spec, weights, LONG), PROMPTS, LONG)
    for found, expected in zip(
        Paged(CompiledDecoder(spec, weights, LONG, threads=1)).logits(PROMPTS, 7), eager, strict=True
    ):
        assert_close(found, expected)


def test_numbers_that_are_not_finite_stay_with_their_sequence(make_family: Make) -> None:
    directory = make_family("llama", hidden_size=64, intermediate_size=96, head_dim=32)
    spec, weights = load(directory)
    weights.embedding[9, 3] = torch.nan
    weights.embedding[10, 3] = torch.inf
    for bits in (None, Kind.INT8, Kind.INT4):
        decoder = CompiledDecoder(spec, weights, LONG, bits=bits, threads=1)
        prompts = [[11, 12, 13], [11, 9, 13], [11, 10, 13], [14] * 20]
        good, nan, infinite, also_good = Paged(decoder).logits(prompts, 2)
        assert good.isfinite().all() and also_good.isfinite().all()
        for bad in (nan, infinite):
            assert bad[0].isfinite().all()
            assert not bad[1:].isfinite().all(-1).any()


def test_what_it_cannot_run_is_said(make_family: Make) -> None:
    spec, weights = load(make_family("llama", hidden_size=96, intermediate_size=40, head_dim=8))
    reasons = reasons_against(spec, weights)
    assert reasons == ["intermediate_size is 40, not a multiple of 16", "head_dim is 8, not a multiple of 16"]
    assert "head_dim is 8, not a multiple of 32" in reasons_against(spec, weights, Kind.INT4)


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_are_left_to_pytorch(name: str, make_family: Make) -> None:
    assert "it has experts" in reasons_against(*load(make_family(name, **WIDE)))
