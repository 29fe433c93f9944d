"""Protects: the reference, filled layer by layer, computes what Transformers and PEFT compute with all loaded."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve.errors import AdapterError, SourceError
from tuneserve.parity._sides import open_side
from tuneserve.parity._stream import StreamedModel
from tuneserve.sources import resolve

from .conftest import FAMILIES

Make = Callable[..., Path]
IDS = torch.tensor([[5, 9, 17, 33, 64, 71, 2, 8, 90, 41], [7, 7, 12, 3, 0, 0, 0, 0, 0, 0]])
MASK = torch.arange(10) < torch.tensor([[10], [4]])
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "all-linear": ("llama", {"r": 4, "target_modules": "all-linear"}),
    "rslora and patterns": (
        "llama",
        {"r": 4, "use_rslora": True, "rank_pattern": {"q_proj": 2}, "target_modules": ["q_proj", "v_proj"]},
    ),
    "bias": ("qwen2", {"r": 4, "bias": "lora_only", "target_modules": ["q_proj", "k_proj"]}),
    "lora_bias": ("qwen2", {"r": 4, "lora_bias": True, "target_modules": ["q_proj", "k_proj"]}),
    "dora": ("llama", {"r": 4, "use_dora": True, "target_modules": "all-linear"}),
    "dora on the embedding": ("llama", {"r": 4, "use_dora": True, "target_modules": ["embed_tokens", "lm_head"]}),
    "tied embedding": ("llama-tied", {"r": 4, "target_modules": ["embed_tokens", "q_proj"]}),
    "scaled embedding": ("gemma3_text", {"r": 4, "target_modules": ["embed_tokens", "q_proj"]}),
    "head": ("llama", {"r": 4, "target_modules": ["lm_head"]}),
    "modules to save": ("llama", {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "norm"]}),
    "head to save": ("llama-tied", {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "tokens": ("llama-tied", {"r": 4, "target_modules": ["q_proj"], "trainable_token_indices": [5, 33]}),
    "conv1d": ("gpt2", {"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "fused": ("phi3", {"r": 4, "target_modules": ["qkv_proj", "gate_up_proj"]}),
    "experts": ("qwen3_moe", {"r": 2, "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
    "transposed experts": ("gpt_oss", {"r": 2, "target_parameters": ["mlp.experts.down_proj"]}),
    "delta net": ("qwen3_5_text", {"r": 4, "target_modules": ["in_proj_qkv", "in_proj_b", "out_proj", "q_proj"]}),
    "shared keys": ("gemma4_text", {"r": 4, "target_modules": ["k_proj", "per_layer_projection"]}),
    "pissa": ("llama", {"r": 4, "init_lora_weights": "pissa", "target_modules": ["q_proj", "down_proj"]}),
    "olora": ("llama", {"r": 4, "init_lora_weights": "olora", "target_modules": ["q_proj", "down_proj"]}),
}


def whole(directory: Path, adapter: Path | None = None) -> torch.Tensor:
    """Return the logits at the masked positions, from one prompt at a time and everything loaded."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings(action="ignore"):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter)).eval()
    with torch.inference_mode():
        rows = zip(IDS, MASK, strict=True)
        return torch.cat([model(input_ids=row[real].unsqueeze(0), use_cache=False).logits[0] for row, real in rows])


def streamed(source: Path, *, resident: bool = False) -> torch.Tensor:
    with torch.inference_mode():
        return StreamedModel(open_side(resolve(source)), resident=resident).logits(IDS, MASK)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_any_family_is_what_transformers_loads(family: str, make_family: Make) -> None:
    base = make_family(family)
    assert torch.allclose(streamed(base), whole(base), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_of_any_kind_is_what_peft_runs_unmerged(case: str, make_family: Make, make_adapter: Make) -> None:
    family, fields = ADAPTERS[case]
    base = make_family(family)
    adapter = make_adapter(base, **fields)
    expected = whole(base, adapter)
    assert not torch.allclose(expected, whole(base), atol=1e-2)
    for resident in (False, True):
        assert torch.allclose(streamed(adapter, resident=resident), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["LoHaConfig", "IA3Config"])
def test_other_kinds_run_with_the_base_loaded_whole(kind: str, make_family: Make, make_adapter: Make) -> None:
    base = make_family("llama")
    modules = {"target_modules": ["q_proj", "down_proj"]}
    adapter = make_adapter(base, kind, **modules, **({"feedforward_modules": ["down_proj"]} if "IA3" in kind else {}))
    model = StreamedModel(open_side(resolve(adapter)))
    assert model.note
    with torch.inference_mode():
        assert torch.allclose(model.logits(IDS, MASK), whole(base, adapter), atol=1e-4, rtol=1e-4)


def test_it_generates_what_transformers_generates(make_family: Make) -> None:
    from transformers import AutoModelForCausalLM

    base = make_family("qwen2")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    expected = model.generate(IDS[:1], do_sample=False, max_new_tokens=8, eos_token_id=None)[0, 10:].tolist()
    with torch.inference_mode():
        streamed_model = StreamedModel(open_side(resolve(base)))
        assert streamed_model.generate(IDS[:1], frozenset(), 8) == expected
        assert streamed_model.generate(IDS[:1], frozenset(expected[2:3]), 8)[-1] == expected[2]


def test_no_weight_stays_after_a_pass(make_family: Make, make_adapter: Make) -> None:
    adapter = make_adapter(make_family("llama"), r=4, target_modules="all-linear")
    model = StreamedModel(open_side(resolve(adapter)))
    with torch.inference_mode():
        model.logits(IDS, MASK)
    left = [name for name, weight in model.model.named_parameters() if weight.device.type != "meta"]
    assert left
    assert all("lora_" in name for name in left)


def test_prompts_are_refused_by_name(make_family: Make, make_adapter: Make) -> None:
    adapter = make_adapter(make_family("llama"), "PromptTuningConfig", num_virtual_tokens=4)
    with pytest.raises(AdapterError, match="PROMPT_TUNING"):
        StreamedModel(open_side(resolve(adapter)))


def test_a_missing_weight_is_an_error_and_not_random(make_family: Make) -> None:
    from safetensors.torch import load_file, save_file

    base = make_family("llama")
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(SourceError, match=r"has no weights for model\.layers\.1\.mlp\.up_proj"):
        streamed(base)


def test_weights_of_another_shape_are_an_error(make_family: Make) -> None:
    import json

    base = make_family("llama")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    with pytest.raises(SourceError, match="do not belong together"):
        streamed(base)


def test_code_of_a_model_never_runs(make_family: Make) -> None:
    import json

    base = make_family("llama")
    config = json.loads((base / "config.json").read_text())
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (base / "config.json").write_text(json.dumps({**config, **own}))
    (base / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(SourceError, match="Transformers does not load it"):
        streamed(base)
