"""Protects: the same tokens alone and in any batch, with and without shared beginnings, chunks and preemption."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.native.scheduling import GREEDY, TOKENS, count_preemptions, drain, greedy_tokens, requests_of, start
from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.errors import InputError, RequestError

Make = Callable[..., Path]
PREFIX = [(3 * index) % 200 for index in range(70)]
PROMPTS = {
    "a": PREFIX, "same": PREFIX, "longer": [*PREFIX, 9, 8, 7], "shorter": PREFIX[:35], "other": [5] * 50, "b": [7],
    "full block": PREFIX[:64],
}  # fmt: skip
DRAWN = SamplingParams(max_tokens=TOKENS, temperature=0.9, top_p=0.95, seed=11)


@pytest.fixture(autouse=True)
def _one_thread(_cpu_threads: None) -> None:
    """On a model this small, threads mostly wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(write_model: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("paging") / "model", dtype=torch.float32)


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[str, dict[str, list[int]]]:
    """What each request gives alone, computed in one go; greedy tokens are Transformers'."""
    drawn: dict[str, list[int]] = {}
    for request in requests_of(PROMPTS, DRAWN):
        drawn |= drain(start(model, prefix_cache=False), [request])
    return {"greedy": greedy_tokens(model, PROMPTS), "drawn": drawn}


@pytest.mark.parametrize("prefix_cache", [True, False], ids=["shared", "apart"])
@pytest.mark.parametrize("cache_tokens", [None, 128, 256], ids=["roomy", "tiny", "tight"])
@pytest.mark.parametrize("step_tokens", [512, 19, 7])
def test_tokens_are_the_same_however_they_are_computed(
    prefix_cache: bool,
    cache_tokens: int | None,
    step_tokens: int,
    model: Path,
    expected: dict[str, dict[str, list[int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tuneserve.native._engine._STEP_TOKENS", step_tokens)
    core = start(model, prefix_cache=prefix_cache, cache_tokens=cache_tokens, max_running=6)
    preemptions = count_preemptions(core, monkeypatch)
    # A second round finds what the first one has left.
    for _ in range(2):
        assert drain(core, requests_of(PROMPTS, GREEDY)) == expected["greedy"]
        assert drain(core, requests_of(PROMPTS, DRAWN)) == expected["drawn"]
    assert (core.stats().prefix_hits > 0) == prefix_cache
    if cache_tokens == 256:
        assert preemptions
    assert core.stats().cache_usage == 0


def test_requests_that_come_and_go_disturb_nobody(model: Path, expected: dict[str, dict[str, list[int]]]) -> None:
    core = start(model, cache_tokens=256, max_running=4)
    produced: dict[str, list[int]] = {name: [] for name in PROMPTS}
    queue = requests_of(PROMPTS, DRAWN)
    for number in range(200):
        if queue and number % 3 == 0:
            core.add(queue.pop(0))
            core.add(
                GenerationRequest(id=f"in the way {number}", prompt_ids=[*PREFIX, number], params=GREEDY, priority=-1)
            )
        if number % 3 == 2:
            core.cancel(f"in the way {number - 2}")
        for output in core.step():
            if output.id in produced:
                assert output.token is not None
                produced[output.id].append(output.token)
        core._scheduler.check()
    assert core.idle
    assert produced == expected["drawn"]


def test_an_adapter_name_that_is_refused_leaves_no_trace(model: Path) -> None:
    core = start(model)
    with pytest.raises(RequestError, match="not being served"):
        core.add(GenerationRequest(id="x", prompt_ids=PREFIX, params=GREEDY, adapter="nobody"))
    assert core.idle


def test_a_billion_tokens_take_no_more_than_the_context(model: Path) -> None:
    core = start(model, cache_tokens=128)
    forever = SamplingParams(max_tokens=10**9, min_tokens=10**9, temperature=0)
    out = drain(core, [GenerationRequest(id=name, prompt_ids=[1, 2, 3], params=forever) for name in "ab"])
    assert {name: len(tokens) for name, tokens in out.items()} == {"a": 125, "b": 125}


def test_a_cache_that_is_too_small_is_refused_at_the_start(model: Path) -> None:
    with pytest.raises(InputError, match=r"cache_tokens has room for 112 tokens, and one sequence .* takes 128"):
        start(model, cache_tokens=127)
    with pytest.raises(InputError, match=r"takes .* GB"):
        start(model, cache_tokens=10**15)
    with pytest.raises(InputError, match="max_running is 9 and the cache has 8 blocks"):
        start(model, cache_tokens=128, max_running=9)
    with pytest.raises(InputError, match="max_running is 0"):
        start(model, max_running=0)
    with pytest.raises(InputError, match="cache_tokens has room for 0 tokens"):
        start(model, cache_tokens=-5)


def test_what_is_not_finite_fails_its_request_in_the_first_chunk_and_spreads_to_nobody(
    make_llama: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    model = make_llama(dtype=torch.float32, tie_word_embeddings=False)
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"][255] = float("nan")
    tensors["lm_head.weight"][255] = 0
    save_file(tensors, model / "model.safetensors")
    monkeypatch.setattr("tuneserve.native._engine._STEP_TOKENS", 16)
    core = start(model, cache_tokens=128, max_running=2)
    good = GenerationRequest(id="good", prompt_ids=PREFIX[:20], params=GREEDY)
    alone = drain(core, [good])
    for bad in ([255] + [1] * 60, [1] * 40 + [255], [*PREFIX[:20], 255], [255]):
        core.add(GenerationRequest(id="bad", prompt_ids=bad, params=GREEDY))
        core.add(good)
        produced, failed = [], False
        while not core.idle:
            for output in core.step():
                if output.id == "bad":
                    assert output.failed and output.token is None and not output.finish_reason
                    failed = True
                    # At once, not at the end of the prompt.
                    assert core._sequences.keys() == {"good"}
                else:
                    assert output.token is not None
                    produced.append(output.token)
            core._scheduler.check()
        assert failed
        assert produced == alone["good"]
