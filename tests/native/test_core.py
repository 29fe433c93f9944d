"""Protects: greedy output is Transformers', whatever shares the batch, and requests stay apart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.errors import CheckpointError, InputError, RequestError
from tuneserve.native import EngineConfig, NativeCore

Make = Callable[..., Path]
GREEDY = SamplingParams(max_tokens=12, temperature=0)
PROMPTS = {"a": [1, 5, 9], "b": [7], "c": list(range(3, 60)), "d": [200, 100]}


@pytest.fixture
def core(make_llama: Make) -> NativeCore:
    return NativeCore(EngineConfig(model_dir=str(make_llama()), dtype="float32", max_running=3))


def run(core: NativeCore, requests: list[GenerationRequest]) -> dict[str, list[int]]:
    produced: dict[str, list[int]] = {request.id: [] for request in requests}
    for request in requests:
        core.add(request)
    while not core.idle:
        for output in core.step():
            assert output.token is not None
            produced[output.id].append(output.token)
    return produced


def requests(params: SamplingParams, prompts: dict[str, list[int]] = PROMPTS) -> list[GenerationRequest]:
    return [GenerationRequest(id=name, prompt_ids=ids, params=params) for name, ids in prompts.items()]


def transformers_greedy(model_dir: Path, prompt: list[int], count: int) -> list[int]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


ROPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "llama3": {
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "parameters": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "untied": {"tie_word_embeddings": False, "num_key_value_heads": 4},
}  # fmt: skip


@pytest.mark.parametrize("shape", ROPES)
def test_greedy_tokens_are_those_of_transformers(shape: str, make_llama: Make) -> None:
    model_dir = make_llama(dtype=torch.float32, **ROPES[shape])
    core = NativeCore(EngineConfig(model_dir=str(model_dir), dtype="float32"))
    batch = run(core, requests(GREEDY))
    for name, prompt in PROMPTS.items():
        assert batch[name] == transformers_greedy(model_dir, prompt, 12)


def test_an_adapter_is_folded_in_as_peft_applies_it(make_llama: Make, make_lora: Make) -> None:
    from tuneserve import artifacts

    base = make_llama()
    adapter = make_lora(base, scale=0.3)
    folded = NativeCore(EngineConfig(model_dir=str(base), adapter_dir=str(adapter), dtype="bfloat16"))
    plain = NativeCore(EngineConfig(model_dir=str(base), dtype="bfloat16"))
    out = base.parent / "merged"
    artifacts.export(adapter, out)
    merged = NativeCore(EngineConfig(model_dir=str(out), dtype="bfloat16"))
    tokens = run(folded, requests(GREEDY))
    assert tokens == run(merged, requests(GREEDY))
    assert tokens != run(plain, requests(GREEDY))


def test_tokens_do_not_depend_on_the_batch(core: NativeCore) -> None:
    for params in (GREEDY, SamplingParams(max_tokens=12, temperature=0.8, top_p=0.9, seed=3)):
        batch = run(core, requests(params))
        for request in requests(params):
            assert run(core, [request])[request.id] == batch[request.id]


def test_a_prompt_longer_than_a_step_is_computed_in_chunks(make_llama: Make) -> None:
    model_dir = make_llama(dtype=torch.float32, max_position_embeddings=2048)
    core = NativeCore(EngineConfig(model_dir=str(model_dir), dtype="float32"))
    prompt = [(7 * index) % 256 for index in range(1300)]
    batch = run(core, requests(GREEDY, {"long": prompt, **PROMPTS}))
    assert batch["long"] == transformers_greedy(model_dir, prompt, 12)
    assert batch["a"] == run(core, requests(GREEDY))["a"]


def test_a_cancelled_request_frees_its_place_and_disturbs_nobody(core: NativeCore) -> None:
    alone = run(core, requests(GREEDY))
    for request in requests(GREEDY):
        core.add(request)
    core.step()
    core.cancel("a")
    core.cancel("nobody")
    produced: dict[str, list[int]] = {}
    first = {name: tokens[0] for name, tokens in alone.items()}
    while not core.idle:
        for output in core.step():
            assert output.token is not None
            produced.setdefault(output.id, []).append(output.token)
    assert "a" not in produced
    assert produced["d"] == alone["d"]
    assert [first["b"], *produced["b"]] == alone["b"]
    assert core.stats().running == core.stats().waiting == 0


def test_ends(core: NativeCore) -> None:
    tokens = run(core, requests(GREEDY))["a"]
    index = tokens.index(tokens[3])
    stop = SamplingParams(max_tokens=12, temperature=0, stop_token_ids=(tokens[3],))
    assert run(core, requests(stop))["a"] == tokens[: index + 1]
    late = SamplingParams(max_tokens=12, temperature=0, stop_token_ids=(tokens[0],), min_tokens=2)
    assert tokens[0] not in run(core, requests(late))["a"][:2]
    to_the_end = run(core, [GenerationRequest(id="x", prompt_ids=[1] * 120, params=SamplingParams(temperature=0))])
    assert len(to_the_end["x"]) == 128 - 120


@pytest.mark.parametrize(
    ("prompt", "params"),
    [
        ([], {}),
        ([256], {}),
        ([-1], {}),
        ([1] * 128, {}),
        ([1], {"max_tokens": 0}),
        ([1], {"temperature": -0.1}),
        ([1], {"temperature": float("nan")}),
        ([1], {"top_p": 0.0}),
        ([1], {"top_k": -1}),
        ([1], {"min_p": 1.5}),
        ([1], {"repetition_penalty": 0.0}),
        ([1], {"seed": 2**70}),
        ([1], {"stop_token_ids": (999,)}),
        ([1], {"typical_p": 0.0}),
        ([1], {"presence_penalty": 101.0}),
        ([1], {"logit_bias": {256: 1.0}}),
        ([1], {"logit_bias": {-1: 1.0}}),
        ([1], {"logit_bias": {5: float("nan")}}),
        ([1], {"logit_bias": {5: 1e9}}),
        ([1], {"bad_words": ((3, 256),)}),
        ([1], {"bad_words": ((),)}),
        ([1], {"bad_words": ((1,) * 20_001,)}),
        ([1], {"logprobs": 101}),
        ([1], {"prompt_logprobs": -1}),
    ],
)
def test_a_request_that_cannot_be_served_is_refused(
    prompt: list[int], params: dict[str, object], core: NativeCore
) -> None:
    with pytest.raises(RequestError):
        core.add(GenerationRequest(id="x", prompt_ids=prompt, params=SamplingParams(**params)))  # type: ignore[arg-type]
    assert core.idle


def test_a_repeated_id_is_refused(core: NativeCore) -> None:
    core.add(requests(GREEDY)[0])
    with pytest.raises(RequestError, match="running already"):
        core.add(requests(GREEDY)[0])


def test_weights_without_finite_logits_fail_their_request_only(make_llama: Make) -> None:
    from safetensors.torch import load_file, save_file

    model_dir = make_llama()
    tensors = load_file(model_dir / "model.safetensors")
    tensors["model.embed_tokens.weight"][9] = float("nan")
    tensors["lm_head.weight"] = torch.randn(256, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    # The poisoned token must not be one that the others produce.
    tensors["lm_head.weight"][9] = 0
    config = (
        (model_dir / "config.json").read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    )
    (model_dir / "config.json").write_text(config)
    save_file(tensors, model_dir / "model.safetensors")
    core = NativeCore(EngineConfig(model_dir=str(model_dir), dtype="float32"))
    for name, ids in {"bad": [9], "good": [1]}.items():
        core.add(GenerationRequest(id=name, prompt_ids=ids, params=SamplingParams(max_tokens=1, temperature=0)))
    outputs = {output.id: output for output in core.step()}
    assert outputs["bad"].failed
    assert not outputs["good"].failed
    assert core.idle
    # Nothing of it is left in the slot that these two share a step with.
    run(core, requests(GREEDY, {"short": [1], "long": [2] * 40}))


def test_loading_refuses_what_does_not_fit(make_llama: Make) -> None:
    from safetensors.torch import load_file, save_file

    model_dir = make_llama()
    tensors = load_file(model_dir / "model.safetensors")
    tensors["extra.weight"] = torch.zeros(1)
    del tensors["model.norm.weight"]
    save_file(tensors, model_dir / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is missing.*extra\.weight is not part"):
        NativeCore(EngineConfig(model_dir=str(model_dir)))
    for options in ({"context_length": 4096}, {"context_length": 1}, {"dtype": "int3"}, {"max_running": 10**9}):
        with pytest.raises(InputError):
            NativeCore(EngineConfig(model_dir=str(make_llama("other")), **options))
