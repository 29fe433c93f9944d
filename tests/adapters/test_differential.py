"""Protects: whatever PEFT can train and save over these families, the merged model has the unmerged model's logits.

``TUNESERVE_DRAWS`` (per family) and ``TUNESERVE_SEED`` draw more, or others.
"""

import copy
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneserve.adapters import WeightedAdapter, merge_model, open_adapter
from tuneserve.checkpoint import open_checkpoint
from tuneserve.errors import AdapterError

Lab = Any
DRAWS = int(os.environ.get("TUNESERVE_DRAWS", "35"))
SEED = int(os.environ.get("TUNESERVE_SEED", "0"))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LINEAR: dict[str, list[str]] = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "gemma2": LLAMA,
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "gpt_neox": ["query_key_value", "attention.dense", "dense_h_to_4h", "dense_4h_to_h"],
    "gpt2": ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"],
    "qwen3_moe": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "mixtral": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "gpt_oss": ["q_proj", "k_proj", "v_proj", "o_proj"],
}
EXPERTS = ("qwen3_moe", "mixtral", "gpt_oss")
NORMS = {"gpt2": ["ln_1", "ln_f"], "gpt_neox": ["input_layernorm", "final_layer_norm"]}
# What cannot be expressed as weights of the family.
REFUSALS = ("models have none there",)


def some(draw: random.Random, values: list[Any], least: int = 1) -> list[Any]:
    return draw.sample(values, draw.randint(least, len(values)))


def draw_fields(draw: random.Random, family: str) -> dict[str, Any]:
    """Draw the fields of a LoraConfig."""
    linear = some(draw, LINEAR[family])
    embedding, layers = {"gpt2": ("wte", "h"), "gpt_neox": ("embed_in", "layers")}.get(
        family, ("embed_tokens", "layers")
    )
    fields: dict[str, Any] = {
        "r": draw.randint(1, 6),
        "lora_alpha": draw.choice([1, 5, 8]),
        "use_rslora": draw.random() < 0.3,
        "target_modules": linear,
    }
    form = draw.random()
    if form < 0.15:
        fields["target_modules"] = rf".*\.{layers}\.[01]\..*({'|'.join(linear)})"
    elif form < 0.25:
        fields["target_modules"] = "all-linear"
    else:
        fields["target_modules"] = linear + [name for name in (embedding, "lm_head") if draw.random() < 0.2]
    if draw.random() < 0.3:
        fields["rank_pattern"] = {linear[0]: draw.randint(1, 6)}
    if draw.random() < 0.3:
        # PEFT sorts the entries when it saves, and the first match counts.
        patterns = sorted({linear[-1], rf".*\.{layers}\.1\..*", f"{layers}.0.never"})
        fields["alpha_pattern"] = {pattern: draw.randint(1, 9) for pattern in patterns}
    if draw.random() < 0.2 and isinstance(fields["target_modules"], list):
        fields |= {"layers_to_transform": draw.choice([0, [1], [0, 1]]), "layers_pattern": draw.choice([None, layers])}
    if draw.random() < 0.2:
        fields["exclude_modules"] = draw.choice([[linear[0]], rf".*\.0\..*{linear[0]}"])
    kind = draw.random()
    if kind < 0.25:
        fields["use_dora"] = True
    elif kind < 0.4:
        fields["lora_bias"] = True
    elif kind < 0.55 and family in EXPERTS:
        fields["target_parameters"] = some(draw, ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
    elif kind < 0.65:
        return fields | {"init_lora_weights": draw.choice(["pissa", "olora"])}
    if draw.random() < 0.25:
        fields["bias"] = draw.choice(["all", "lora_only"])
    whole = [name for name in (embedding, "lm_head") if name not in fields["target_modules"] and draw.random() < 0.25]
    fields["modules_to_save"] = whole + draw.choice([[], NORMS.get(family, ["input_layernorm", "norm"])[:1]]) or None
    if embedding not in whole and embedding not in fields["target_modules"] and draw.random() < 0.25:
        tokens = draw.sample(range(40), 3)
        fields["trainable_token_indices"] = draw.choice([tokens, {embedding: tokens}])
    # With other names PEFT does not tie again when it loads, and loses what it saved for the head.
    fields["ensure_weight_tying"] = embedding == "embed_tokens" and draw.random() < 0.2
    return fields


class Bases:
    """Bases in memory and on disk, each made once."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._made: dict[tuple[Any, ...], tuple[Path, Any]] = {}

    def get(self, family: str, tied: bool, dtype: torch.dtype, loaded: torch.dtype) -> tuple[Path, Any]:
        key = family, tied, dtype, loaded
        if key not in self._made:
            path = self._lab.base(family, dtype, tie_word_embeddings=tied)
            self._made[key] = path, self._lab.load(path, dtype=loaded)
        path, model = self._made[key]
        return path, copy.deepcopy(model)


def check_one(lab: Lab, bases: Bases, draw: random.Random, family: str) -> bool:
    """Check one drawn adapter; False if PEFT itself does not make such a one."""
    from peft import LoraConfig, PeftModel, get_peft_model

    fields = draw_fields(draw, family)
    tied, base_dtype, dtype = draw.random() < 0.5, draw.choice(DTYPES), draw.choice(DTYPES)
    # The base that such an initialisation leaves is rounded to the dtype that the base is loaded in.
    loaded = base_dtype if "init_lora_weights" in fields else torch.float32
    base, model = bases.get(family, tied, base_dtype, loaded)
    adapter = lab.new("adapter")
    try:
        tuned = get_peft_model(model, LoraConfig(**fields))
        lab.logits(lab.train(tuned))
        tuned.save_pretrained(adapter)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False
    path = adapter / "adapter_model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})

    config = json.loads((base / "config.json").read_text())
    weights, opened = open_checkpoint(base), [WeightedAdapter(open_adapter(adapter))]
    try:
        merged = merge_model(weights, config, opened, "float32")
    except AdapterError as error:
        assert any(reason in str(error) for reason in REFUSALS), f"{error} {fields}"
        return True
    reference = PeftModel.from_pretrained(bases.get(family, tied, base_dtype, loaded)[1], str(adapter))
    try:
        lab.compare(merged, reference.eval().float())
    except AssertionError as error:
        raise AssertionError(f"{family} tied={tied} base={base_dtype} adapter={dtype} {fields}") from error
    rounded = merge_model(weights, config, opened)
    for name in rounded.changed:
        once = merged.read(name)
        assert torch.equal(rounded.read(name), once.to(rounded.read(name).dtype)), name
        assert rounded.tensors[name].dtype == {torch.float16: "F16"}.get(base_dtype, "BF16")
    return True


@pytest.mark.parametrize("family", LINEAR)
def test_merged_is_unmerged(lab: Lab, family: str) -> None:
    draw = random.Random(f"{SEED} {family}")
    bases = Bases(lab)
    checked = 0
    while checked < DRAWS:
        checked += check_one(lab, bases, draw, family)
