"""Protects: the compiled step is what runs where it can, by name or not at all where asked for, and says when not."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.errors import EngineError, InputError
from tuneserve.native import EngineConfig, NativeCore

Make = Callable[..., Path]


def open_core(model_dir: str, **options: Any) -> NativeCore:
    return NativeCore(EngineConfig(model_dir=model_dir, **options))


def greedy(core: NativeCore, prompts: list[list[int]]) -> dict[str, list[int]]:
    produced: dict[str, list[int]] = {}
    params = SamplingParams(max_tokens=12, temperature=0)
    for index, prompt in enumerate(prompts):
        core.add(GenerationRequest(id=str(index), prompt_ids=prompt, params=params))
    while not core.idle:
        for output in core.step():
            assert output.token is not None
            produced.setdefault(output.id, []).append(output.token)
    return produced


PROMPTS = [[1, 5, 9], [7], list(range(3, 60))]


@pytest.mark.parametrize("step", ["compiled", "eager"])
def test_both_steps_choose_the_same_tokens(step: str, make_llama: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tuneserve.native")
    model_dir = str(make_llama())
    found = greedy(NativeCore(EngineConfig(model_dir=model_dir, dtype="float32", cpu_step=step)), PROMPTS)
    assert ("steps are compiled" in caplog.text) == (step == "compiled")
    assert found == greedy(NativeCore(EngineConfig(model_dir=model_dir, dtype="float32")), PROMPTS)


def test_what_cannot_be_compiled_runs_eagerly_and_says_so(make_llama: Make, caplog: pytest.LogCaptureFixture) -> None:
    model_dir = str(make_llama(head_dim=8))
    greedy(NativeCore(EngineConfig(model_dir=model_dir, dtype="float32")), PROMPTS)
    assert "steps are not compiled, which is slower: head_dim is 8, not a multiple of 16" in caplog.text
    for options in ({"cpu_step": "compiled"}, {"weights": "int8"}):
        with pytest.raises(InputError, match="head_dim is 8"):
            open_core(model_dir, **options)


def test_without_a_compiler_steps_are_eager(
    make_llama: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_dir = str(make_llama())
    expected = greedy(NativeCore(EngineConfig(model_dir=model_dir, dtype="float32")), PROMPTS)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    assert greedy(NativeCore(EngineConfig(model_dir=model_dir, dtype="float32")), PROMPTS) == expected
    assert "there is no C++ compiler here" in caplog.text
    with pytest.raises(EngineError, match=r"no C\+\+ compiler"):
        NativeCore(EngineConfig(model_dir=model_dir, cpu_step="compiled"))


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_weights_are_quantised_at_load(bits: str, make_llama: Make) -> None:
    model_dir = str(make_llama(head_dim=32, intermediate_size=128, hidden_size=128))
    core, whole = (
        NativeCore(EngineConfig(model_dir=model_dir, weights=bits)),
        NativeCore(EngineConfig(model_dir=model_dir)),
    )
    assert core.info.weight_bytes < 0.75 * whole.info.weight_bytes
    assert all(len(tokens) == 12 for tokens in greedy(core, PROMPTS).values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_cannot_be_quantised_is_refused(value: float, make_llama: Make) -> None:
    directory = make_llama(head_dim=32, intermediate_size=128, hidden_size=128)
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = value
    save_file(tensors, directory / "model.safetensors")
    for bits in ("int8", "int4"):
        with pytest.raises(InputError, match=f"weights that {bits} cannot"):
            open_core(str(directory), weights=bits)


@pytest.mark.parametrize(
    "options", [{"cpu_step": "fast"}, {"weights": "int3"}, {"cpu_step": "eager", "weights": "int4"}]
)
def test_options_that_mean_nothing_are_refused(options: dict[str, str], make_llama: Make) -> None:
    with pytest.raises(InputError):
        open_core(str(make_llama()), **options)
