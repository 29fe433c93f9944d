"""Protects: models that carry a state or share caches give the same tokens however their requests are scheduled."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.native.scheduling import GREEDY, count_preemptions, drain, greedy_tokens, requests_of, start
from tuneserve.engines.contract import GenerationRequest
from tuneserve.errors import InputError

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 128,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "qwen3_5_text": {
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12,
        "rms_norm_eps": 1e-2,
    },
    "gemma4_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 3, "num_kv_shared_layers": 2, "sliding_window": 20,
        "global_head_dim": 24, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 256,
    },
}  # fmt: skip
CARRYING = "qwen3_5_text"
PREFIX = [(3 * index) % 200 + 3 for index in range(70)]
PROMPTS = {
    "a": PREFIX, "same": PREFIX, "longer": [*PREFIX, 9, 8, 7], "shorter": PREFIX[:35], "other": [5] * 50, "b": [7],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread(_cpu_threads: None) -> None:
    """On a model this small, threads mostly wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what writes a model once and gives its directory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    home = tmp_path_factory.mktemp("states")

    def model(family: str) -> Path:
        if not (home / family).exists():
            torch.manual_seed(1)
            config = AutoConfig.for_model(family, **{**SIZES, **MODELS[family]})
            whole = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            for parameter in whole.parameters():
                parameter.data = torch.randn(parameter.shape) * 0.3
            whole.save_pretrained(home / family)
        return home / family

    return model


@pytest.fixture(scope="module")
def expected(write: Callable[[str], Path]) -> Callable[[str], dict[str, list[int]]]:
    """Return what gives the greedy tokens of Transformers for each prompt, computed once."""
    known: dict[str, dict[str, list[int]]] = {}

    def tokens(family: str) -> dict[str, list[int]]:
        if family not in known:
            known[family] = greedy_tokens(write(family), PROMPTS)
        return known[family]

    return tokens


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(("cache_tokens", "step_tokens"), [(None, 512), (None, 7), (128, 19), (256, 512), (256, 7)])
def test_tokens_are_those_of_transformers_however_they_are_computed(
    family: str,
    cache_tokens: int | None,
    step_tokens: int,
    write: Callable[[str], Path],
    expected: Callable[[str], dict[str, list[int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tuneserve.native._engine._STEP_TOKENS", step_tokens)
    core = start(write(family), cache_tokens=cache_tokens, max_running=5)
    preempted = count_preemptions(core, monkeypatch)
    # A second round finds what the first one has left, in blocks and in slots.
    for _ in range(2):
        assert drain(core, requests_of(PROMPTS, GREEDY)) == expected(family)
    assert (core.stats().prefix_hits > 0) == (family != CARRYING)
    if cache_tokens == 256:
        assert preempted
    assert core.stats().cache_usage == 0


@pytest.mark.parametrize("family", MODELS)
def test_requests_that_come_and_go_disturb_nobody(
    family: str, write: Callable[[str], Path], expected: Callable[[str], dict[str, list[int]]]
) -> None:
    core = start(write(family), cache_tokens=256, max_running=4)
    produced: dict[str, list[int]] = {name: [] for name in PROMPTS}
    queue = requests_of(PROMPTS, GREEDY)
    for number in range(250):
        if queue and number % 3 == 0:
            core.add(queue.pop(0))
            core.add(GenerationRequest(id=f"{number}", prompt_ids=[*PREFIX, number + 1], params=GREEDY, priority=-1))
        if number % 3 == 2:
            core.cancel(f"{number - 2}")
        for output in core.step():
            if output.id in produced:
                assert output.token is not None
                produced[output.id].append(output.token)
        core._scheduler.check()
    assert core.idle
    assert produced == expected(family)


@pytest.mark.parametrize("family", MODELS)
def test_what_is_not_finite_stays_with_its_request(family: str, write: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(write(family) / "model.safetensors")
    tensors["model.embed_tokens.weight"][255] = float("nan")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].nan_to_num(0)
    save_file(tensors, tmp_path / "model.safetensors")
    config = (write(family) / "config.json").read_text().replace('"tie_word_embeddings": true', '"untied": true')
    (tmp_path / "config.json").write_text(config.replace('"untied": true', '"tie_word_embeddings": false'))
    core = start(tmp_path, cache_tokens=256, max_running=2)
    good = GenerationRequest(id="good", prompt_ids=PREFIX[:20], params=GREEDY)
    alone = drain(core, [good])
    for bad in ([255], [*PREFIX[:20], 255], [255] + [1] * 60):
        core.add(GenerationRequest(id="bad", prompt_ids=bad, params=GREEDY))
        core.add(good)
        produced, failed = [], 0
        while not core.idle:
            for output in core.step():
                failed += output.failed is not None
                if output.token is not None:
                    assert output.id == "good"
                    produced.append(output.token)
        assert failed == 1 and produced == alone["good"]
        # Its slot and its blocks are somebody else's now.
        again = [GenerationRequest(id=name, prompt_ids=PREFIX[:20], params=GREEDY) for name in "ab"]
        assert drain(core, again) == {"a": alone["good"], "b": alone["good"]}


def test_a_state_that_cannot_be_taken_back_is_not_speculated_on(write: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="speculation cannot be had with qwen3_5_text"):
        start(write(CARRYING), speculation=4)


@pytest.mark.parametrize(("family", "reason"), [(CARRYING, "it has delta_net"), ("gemma4_text", "it has keys_from")])
def test_the_compiled_step_is_refused_with_the_reason(family: str, reason: str, write: Callable[[str], Path]) -> None:
    for options in ({"cpu_step": "compiled"}, {"weights": "int8"}):
        with pytest.raises(InputError, match=reason):
            start(write(family), **options)


def test_states_that_memory_cannot_hold_are_refused_or_made_fewer(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneserve.native._sizes.available_memory", lambda: 1_000_000)
    with pytest.raises(InputError, match=r"the states of 500 sequences take .* choose a smaller max_running"):
        start(write(CARRYING), max_running=500)
    assert 1 < start(write(CARRYING)).info.max_running < 64
