"""Protects: an adapter beside the weights computes what PEFT does, whatever shares the batch, and comes and goes."""

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.conftest import write_family
from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.errors import InputError, RequestError
from tuneserve.native import LLM, EngineConfig, NativeCore

from .unmerged import ALL_LINEAR, logprobs, scored, tuned

Make = Callable[..., Path]
SHORT, LONG = [1, 5, 9, 30, 2, 77, 8], [(7 * index) % 90 + 3 for index in range(50)]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
# By family: what the first adapter is on, and the second, whose ranks and scalings differ by module.
TARGETS: dict[str, tuple[list[str], list[str]]] = {
    "llama biases": (ALL_LINEAR, ["q_proj", "v_proj"]),
    "qwen3": (ALL_LINEAR, ["k_proj", "up_proj"]),
    "gemma2": (ALL_LINEAR, ["gate_proj", "o_proj"]),
    "gemma3": (ATTENTION, ["up_proj", "down_proj"]),
    "phi3": (["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], ["qkv_proj"]),
    "granite": (ALL_LINEAR, ["v_proj", "gate_proj"]),
    "mixtral": (ATTENTION, ["q_proj"]),
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        yield


def opened(base: Path, **options: Any) -> NativeCore:
    return NativeCore(EngineConfig(model_dir=str(base), **{"dtype": "float32", **options}))


def greedy(core: NativeCore, asked: list[tuple[list[int], str | None]], tokens: int = 8) -> list[list[int]]:
    params = SamplingParams(max_tokens=tokens, temperature=0)
    for index, (ids, adapter) in enumerate(asked):
        core.add(GenerationRequest(id=str(index), prompt_ids=ids, params=params, adapter=adapter))
    found: list[list[int]] = [[] for _ in asked]
    while not core.idle:
        for output in core.step():
            assert output.token is not None, output
            found[int(output.id)].append(output.token)
    return found


@pytest.mark.parametrize("family", TARGETS)
def test_log_probabilities_are_those_of_peft_unmerged(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tuneserve.native")
    base = write_family(tmp_path / "base", family, hidden_size=64)
    first, second = TARGETS[family]
    uneven: dict[str, Any] = {
        "r": 3,
        "use_rslora": True,
        "rank_pattern": {second[0]: 6},
        "alpha_pattern": {second[-1]: 20},
    }
    models = {
        "all": tuned(base, tmp_path / "all", target_modules=first),
        "some": tuned(base, tmp_path / "some", seed=1, target_modules=second, layers_to_transform=[0, 2], **uneven),
    }
    asked = [(ids, name) for ids in (SHORT, LONG) for name in ("all", None, "some")]
    for step in ("auto", "eager"):
        core = opened(base, cpu_step=step)
        plain = [scored(core, [(ids, None)])[0] for ids in (SHORT, LONG)]
        for name in models:
            core.load_adapter(name, tmp_path / name)
        together = scored(core, asked)
        for (ids, adapter), found in zip(asked, together, strict=True):
            expected = plain[ids is LONG] if adapter is None else logprobs(models[adapter], ids)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            assert adapter is None or not torch.allclose(found, plain[ids is LONG], atol=1e-2)
    assert ("steps are compiled" in caplog.text) == (family != "mixtral")


@pytest.mark.parametrize(
    "options",
    [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": "float16"}, {"dtype": "bfloat16", "weights": "int8"}],
    ids=lambda options: " ".join(options.values()),
)
def test_a_row_gets_the_same_bits_alone_and_beside_other_adapters(
    options: dict[str, str], make_llama: Make, make_lora: Make
) -> None:
    base = make_llama(dtype=torch.float32, head_dim=32)
    core, plain = opened(base, cpu_step="compiled", **options), opened(base, cpu_step="compiled", **options)
    for seed, rank in enumerate((1, 4, 16, 33)):
        core.load_adapter(f"rank {rank}", make_lora(base, f"r{rank}", rank=rank, seed=seed))
    names = [*core.info.adapters, None]
    prompts = [[(seed + 11 * index) % 200 + 3 for index in range(1 + 13 * seed % 60)] for seed in range(20)]
    asked = [([*ids, 9, 4], names[index % 5]) for index, ids in enumerate(prompts)]
    together = scored(core, asked)
    for request, found in zip(asked, together, strict=True):
        assert torch.equal(scored(core, [request])[0], found)
    for request, found in zip(asked, together, strict=True):
        if request[1] is None:
            assert torch.equal(scored(plain, [request])[0], found)
    assert greedy(core, asked) == [greedy(core, [request])[0] for request in asked]


def test_quantised_weights_keep_what_an_adapter_changes(make_llama: Make, make_lora: Make) -> None:
    base = make_llama(dtype=torch.float32, head_dim=32)
    adapter = make_lora(base, rank=8)
    change = []
    for weights in ("auto", "int8"):
        core = opened(base, weights=weights)
        core.load_adapter("a", adapter)
        without, found = scored(core, [(LONG, None), (LONG, "a")])
        change.append(found - without)
    # What the weights lose by rounding is the same with and without an adapter, to first order.
    assert (change[1] - change[0]).abs().mean() < 0.1 * change[0].abs().mean()


def test_adapters_come_and_go_while_others_are_served(make_llama: Make, make_lora: Make) -> None:
    base = make_llama(dtype=torch.float32)
    core = opened(base)
    core.load_adapter("a", make_lora(base, "a", seed=1))
    alone = greedy(core, [(LONG, "a"), (LONG, None)], 40)
    params = SamplingParams(max_tokens=40, temperature=0)
    for name, adapter in (("with", "a"), ("without", None)):
        core.add(GenerationRequest(id=name, prompt_ids=LONG, params=params, adapter=adapter))
    found: dict[str, list[int | None]] = {"with": [], "without": []}
    steps = 0
    while not core.idle:
        steps += 1
        for output in core.step():
            found[output.id].append(output.token)
        if steps == 5:
            core.load_adapter("b", make_lora(base, "b", seed=2, rank=9))
            core.unload_adapter("a")
            assert core.info.adapters == ("b",) and core.is_unloading("a")
            with pytest.raises(RequestError, match="'a' is not being served"):
                core.add(GenerationRequest(id="late", prompt_ids=[1], params=params, adapter="a"))
            with pytest.raises(InputError, match="is called 'a' already"):
                core.load_adapter("a", make_lora(base, "a", seed=1))
    assert [found["with"], found["without"]] == alone
    assert not core.is_unloading("a")
    with pytest.raises(InputError, match="no adapter is called 'a'"):
        core.unload_adapter("a")


@pytest.mark.parametrize("step", ["compiled", "eager"])
def test_a_name_that_is_loaded_again_is_another_adapter(step: str, make_llama: Make, make_lora: Make) -> None:
    base = make_llama(dtype=torch.float32)
    core = opened(base, cpu_step=step)
    expected = {}
    for seed in (1, 2):
        core.load_adapter("a", make_lora(base, f"a{seed}", seed=seed, rank=3 * seed, scale=0.2))
        expected[seed] = greedy(core, [(LONG, "a")])
        assert greedy(core, [(LONG, "a")]) == expected[seed]
        assert core.stats().prefix_hits == seed * 48
        core.unload_adapter("a")
        assert core.stats().cache_usage == 0
    assert expected[1] != expected[2]


def test_an_adapter_never_takes_over_what_the_base_has_computed(make_llama: Make, make_lora: Make) -> None:
    base = make_llama(dtype=torch.float32)
    core = opened(base)
    core.load_adapter("a", make_lora(base))
    fresh = greedy(core, [(LONG, "a")])
    core.unload_adapter("a")
    core.load_adapter("a", make_lora(base))
    greedy(core, [(LONG, None)])
    before = core.stats().prefix_hits
    assert greedy(core, [(LONG, "a")]) == fresh and core.stats().prefix_hits == before


def test_slots_are_used_again(make_llama: Make, make_lora: Make) -> None:
    base = make_llama(dtype=torch.float32)
    core, adapter = opened(base), make_lora(base)
    for _ in range(20):
        core.load_adapter("a", adapter)
        core.load_adapter("b", adapter)
        core.unload_adapter("a")
        core.unload_adapter("b")
    core.load_adapter("c", adapter)
    assert core._adapters.slots == {"c": 0}


def test_llm_takes_an_adapter_per_prompt(talker: Path, make_lora: Make) -> None:
    adapters = {name: make_lora(talker, name, seed=seed, scale=0.3) for seed, name in enumerate("ab")}
    llm = LLM(talker, dtype="float32", adapters=adapters)
    params = SamplingParams(max_tokens=6, temperature=0)
    mixed = llm.generate([LONG] * 3, params, adapter=["a", None, "b"])
    singly = [llm.generate([LONG], params, adapter=name)[0] for name in ("a", None, "b")]
    assert mixed == singly
    assert len({tuple(completion.token_ids) for completion in mixed}) == 3
    assert llm.score([LONG], adapter="a")[0].perplexity != llm.score([LONG])[0].perplexity
    assert not torch.equal(llm.embed([LONG], adapter="b"), llm.embed([LONG]))
    assert "".join(llm.stream(LONG, params, adapter="a")) == singly[0].text
    assert llm.beam_search([LONG], max_tokens=4, adapter="a") != llm.beam_search([LONG], max_tokens=4)
    with pytest.raises(RequestError, match="3 prompts and 2 adapters"):
        llm.generate([LONG] * 3, params, adapter=["a", "b"])
    llm.unload_adapter("a")
    with pytest.raises(RequestError, match="'a' is not being served"):
        llm.generate([LONG], params, adapter="a")
