"""Protects: adapters of other kinds are merged by PEFT itself, and refused where its merge would be wrong."""

import json
from typing import Any

import pytest

from tuneserve.errors import AdapterError

Lab = Any
KINDS: dict[str, dict[str, Any]] = {
    "IA3Config": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LoHaConfig": {"r": 4, "alpha": 4},
    "LoKrConfig": {"r": 4, "alpha": 4},
    "OFTConfig": {"r": 0, "oft_block_size": 4},
    "BOFTConfig": {"boft_block_size": 4},
    "VeraConfig": {"r": 4},
    "AdaLoraConfig": {"init_r": 4, "target_r": 2, "total_step": 10},
    "HRAConfig": {"r": 4},
    "FourierFTConfig": {"n_frequency": 8},
    "LNTuningConfig": {"target_modules": ["input_layernorm"]},
    "MissConfig": {"r": 4},
    "TrainableTokensConfig": {"token_indices": [3, 5], "target_modules": ["embed_tokens"]},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_kinds(lab: Lab, kind: str, family: str) -> None:
    import peft

    base = lab.base(family)
    config = getattr(peft, kind)(**{"target_modules": ["q_proj", "v_proj"], **KINDS[kind]})
    lab.check(base, lab.adapter(base, config))


def test_a_wrong_merge_by_peft_is_noticed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    import peft
    from peft.tuners.lycoris_utils import LycorisLayer

    base = lab.base("llama")
    merged = lab.merge(base, lab.adapter(base, peft.LoHaConfig(target_modules=["q_proj"], r=4)))
    monkeypatch.setattr(LycorisLayer, "merge", lambda *_, **__: None)
    with pytest.raises(AdapterError, match="its logits by"):
        merged.read("model.layers.0.self_attn.q_proj.weight")


def test_a_tied_head_is_refused(lab: Lab) -> None:
    """PEFT merges into the embedding that the head is tied to."""
    import peft

    base = lab.base("llama", tie_word_embeddings=True)
    adapter = lab.adapter(base, peft.IA3Config(target_modules=["lm_head"], feedforward_modules=[]))
    with pytest.raises(AdapterError, match="tied to the embedding"):
        lab.merge(base, adapter)


@pytest.mark.parametrize("kind", ["PREFIX_TUNING", "PROMPT_TUNING", "XLORA"])
def test_what_is_no_change_of_weights_is_refused(lab: Lab, kind: str) -> None:
    import peft

    base = lab.base("llama")
    adapter = lab.adapter(base, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(AdapterError, match=f"{kind}.*serve it with PEFT"):
        lab.merge(base, lab.change(adapter, peft_type=kind))


def test_regular_expressions_do_not_reach_peft(lab: Lab) -> None:
    import peft

    base = lab.base("llama")
    adapter = lab.adapter(base, peft.LoHaConfig(target_modules=["q_proj"], r=4))
    with pytest.raises(AdapterError, match="regular expression in target_modules"):
        lab.merge(base, lab.change(adapter, target_modules="(a+)+q_proj"))


def test_a_rank_that_the_file_does_not_have_allocates_nothing(lab: Lab) -> None:
    import peft

    base = lab.base("llama")
    adapter = lab.adapter(base, peft.LoHaConfig(target_modules=["q_proj"], r=4))
    with pytest.raises(AdapterError, match="rank 1000000"):
        lab.merge(base, lab.change(adapter, r=1_000_000))


def test_too_little_memory_is_seen_first(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    import peft

    from tuneserve.adapters import _peft

    base = lab.base("llama")
    merged = lab.merge(base, lab.adapter(base, peft.LoHaConfig(target_modules=["q_proj"], r=4)))
    monkeypatch.setattr(_peft, "available_memory", lambda: 1000)
    with pytest.raises(AdapterError, match="GB"):
        merged.read("model.layers.0.self_attn.q_proj.weight")


def test_a_kind_that_peft_does_not_know_is_refused(lab: Lab) -> None:
    import peft

    base = lab.base("llama")
    adapter = lab.change(lab.adapter(base, peft.LoraConfig(target_modules=["q_proj"])), peft_type="NOVEL")
    assert json.loads((adapter / "adapter_config.json").read_text())["peft_type"] == "NOVEL"
    with pytest.raises(AdapterError, match="NOVEL"):
        lab.merge(base, adapter).read("model.layers.0.self_attn.q_proj.weight")
