"""Protects: a family that the native decoder does not have runs through Transformers, and is none the worse for it."""

import gc
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.errors import CheckpointError, InputError, SpecError
from tuneserve.native import LLM, EngineConfig, NativeCore

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 300}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2 | {"bos_token_id": 1, "eos_token_id": 2},
    "gpt_neox": SIZES,
    "opt": SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "falcon": SIZES,
    "qwen3_5_text": SIZES | {
        "num_hidden_layers": 4, "head_dim": 8, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 300},
    "starcoder2": SIZES | {"sliding_window": 9},
    "olmo2": SIZES,
    "cohere": SIZES,
    "mamba2": SIZES | {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 4},
    "qwen3_next": SIZES | {
        "num_hidden_layers": 4, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    },
}  # fmt: skip
PROMPTS = {"short": [5, 9, 30], "long": [(7 * index) % 290 + 3 for index in range(40)], "one": [77]}
Tokens = dict[str, list[int]]


def save(directory: Path, family: str, fields: dict[str, Any]) -> Any:
    """Write a random model of a family, with weights large enough to tell tokens apart; return Transformers' own."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape) * (1.0 if "conv" in name else 0.3)
    model.save_pretrained(directory)
    assert json.loads((directory / "config.json").read_text())["model_type"] == family
    return model


def core_of(directory: Path, **options: Any) -> NativeCore:
    return NativeCore(EngineConfig(model_dir=str(directory), dtype="float32", **options))


def run(core: NativeCore, prompts: Tokens, params: SamplingParams) -> Tokens:
    for name, ids in prompts.items():
        core.add(GenerationRequest(id=name, prompt_ids=ids, params=params))
    produced: Tokens = {name: [] for name in prompts}
    while not core.idle:
        for output in core.step():
            assert output.token is not None, output
            produced[output.id].append(output.token)
    return produced


def generated(model: Any, ids: list[int], count: int) -> list[int]:
    """Return what Transformers' own loop generates."""
    made = model.generate(
        torch.tensor([ids]), max_new_tokens=count, do_sample=False, pad_token_id=0, eos_token_id=None,
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
    )  # fmt: skip
    tokens: list[int] = made[0, len(ids) :].tolist()
    return tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    model = save(tmp_path, family, FAMILIES[family])
    produced = run(core_of(tmp_path), PROMPTS, SamplingParams(max_tokens=12, temperature=0))
    for name, ids in PROMPTS.items():
        assert produced[name] == generated(model, ids, 12)
    assert len({token for tokens in produced.values() for token in tokens}) > 2


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory, write_tokenizer: Callable[[Path, int], None]) -> Path:
    directory = tmp_path_factory.mktemp("gpt2")
    save(directory, "gpt2", FAMILIES["gpt2"])
    write_tokenizer(directory, 300)
    return directory


def test_what_is_asked_of_a_native_model_can_be_asked_here(
    gpt2: Path, reference_logprobs: Callable[[Path, list[int]], torch.Tensor]
) -> None:
    llm = LLM(gpt2, dtype="float32")
    ids = PROMPTS["long"][:12]
    expected = reference_logprobs(gpt2, ids)
    (score,) = llm.score([ids])
    wanted = [expected[index, token].item() for index, token in enumerate(ids[1:])]
    assert score.logprobs == pytest.approx(wanted, abs=1e-4)
    params = SamplingParams(max_tokens=9, temperature=1.0, seed=3, logprobs=2, repetition_penalty=1.3)
    alone = llm.generate([ids], params, ignore_eos=True)[0]
    beside = llm.generate([PROMPTS["short"], ids], params, ignore_eos=True)[1]
    assert alone.token_ids == beside.token_ids
    assert alone.logprobs is not None and alone.logprobs[0].logprob == pytest.approx(
        expected[-1, alone.token_ids[0]].item(), abs=1e-4
    )
    assert llm.embed([ids]).shape == (1, 32)


def test_what_is_preempted_is_computed_anew(gpt2: Path) -> None:
    params = SamplingParams(max_tokens=60, temperature=0)
    prompts = {str(index): [index + 5] * 20 for index in range(3)}
    # Room for two of three.
    tight = core_of(gpt2, cache_tokens=176, max_running=3)
    assert run(tight, prompts, params) == run(core_of(gpt2), prompts, params)
    tight._scheduler.check()


def test_who_leaves_frees_the_cache_at_once(gpt2: Path) -> None:
    from tuneserve.native._transformers_runner import TransformersRunner

    core = core_of(gpt2)
    for name in ("stays", "leaves"):
        core.add(GenerationRequest(id=name, prompt_ids=[5, 6], params=SamplingParams(max_tokens=9, temperature=0)))
    core.step()
    gc.disable()
    try:
        runner = core._runner
        assert isinstance(runner, TransformersRunner) and len(runner.caches) == 2
        core.cancel("leaves")
        assert len(runner.caches) == 1
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # between PEFT and Transformers
def test_an_adapter_is_folded_in(gpt2: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(gpt2)
    made = get_peft_model(base, LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True))
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape) * 0.2
    made.save_pretrained(tmp_path)
    trained = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(gpt2), tmp_path).eval()
    params = SamplingParams(max_tokens=12, temperature=0)
    plain = run(core_of(gpt2), PROMPTS, params)
    produced = run(core_of(gpt2, adapter_dir=str(tmp_path)), PROMPTS, params)
    assert produced != plain
    for name, ids in PROMPTS.items():
        assert produced[name] == generated(trained, ids, 12)


def test_a_quantised_base_is_dequantised(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from tuneserve.artifacts import export

    save(tmp_path / "model", "olmo2", SIZES | {"hidden_size": 64, "intermediate_size": 128})
    export(tmp_path / "model", tmp_path / "nf4", method="merged_4bit", verify=False)
    config = json.loads((tmp_path / "nf4" / "config.json").read_text())
    assert config["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    # Its own products of 4 bits are not in float32.
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "nf4", dtype=torch.float32).dequantize().float()
    params = SamplingParams(max_tokens=12, temperature=0)
    produced = run(core_of(tmp_path / "nf4"), PROMPTS, params)
    assert produced != run(core_of(tmp_path / "model"), PROMPTS, params)
    for name, ids in PROMPTS.items():
        assert produced[name] == generated(peer, ids, 12)


def test_it_says_so(gpt2: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "tuneserve.native"):
        core_of(gpt2)
    assert "runs through Transformers, which is slower" in caplog.text and "'gpt2'" in caplog.text


def test_a_model_that_its_cache_changes_is_refused(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import DynamicCache

    update = DynamicCache.update
    # As a family would be that goes on without what came before.
    monkeypatch.setattr(
        DynamicCache, "update", lambda self, key, value, *rest: (update(self, key, value, *rest), (key, value))[1]
    )
    with pytest.raises(SpecError, match="computes from its cache is off by"):
        core_of(gpt2)


@pytest.mark.parametrize("option", [{"speculation": 2}, {"weights": "int8"}, {"cpu_step": "compiled"}])
def test_what_it_does_not_have_is_refused(gpt2: Path, option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(option))} cannot be had"):
        core_of(gpt2, **option)


def test_its_context_is_the_models(gpt2: Path) -> None:
    assert core_of(gpt2).info.context_length == 128
    with pytest.raises(InputError, match="the model has 128"):
        core_of(gpt2, context_length=129)


def test_a_model_without_a_cache_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "bert", SIZES)
    with pytest.raises(SpecError, match="no cache"):
        core_of(tmp_path)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "no causal language model"),
        ({"model_type": "bart", "is_encoder_decoder": True}, "encoder with a decoder"),
        ({"model_type": "unheard_of", "auto_map": {"AutoModelForCausalLM": "modeling.Evil"}}, "no causal language"),
        ({"model_type": "gemma3n"}, "sees or hears"),
        ({"model_type": 7}, "model_type"),
    ],
)
def test_what_transformers_does_not_continue_either_is_refused(
    tmp_path: Path, gpt2: Path, config: dict[str, Any], problem: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(gpt2 / "model.safetensors", tmp_path)
    (tmp_path / "modeling.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(SpecError, match=problem):
        core_of(tmp_path)


@pytest.mark.parametrize("change", [{"n_layer": 3}, {"n_layer": 1}, {"n_embd": 64}, {"n_embd": "x"}, {"n_head": 0}])
def test_a_config_that_is_not_the_weights_is_refused(tmp_path: Path, gpt2: Path, change: dict[str, Any]) -> None:
    config = json.loads((gpt2 / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    shutil.copy(gpt2 / "model.safetensors", tmp_path)
    with pytest.raises((SpecError, CheckpointError), match="download"):
        core_of(tmp_path)
