"""Protects: what cannot stay beside the weights is refused by name with the remedy, and hostile files do no harm."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneserve.adapters import LowRankDelta, read_deltas
from tuneserve.checkpoint import open_checkpoint
from tuneserve.errors import AdapterError, InputError
from tuneserve.native import EngineConfig, NativeCore
from tuneserve.spec import read_spec

Make = Callable[..., Path]
FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model.model.layers.0."


def deltas(base: Path, adapter: Path) -> tuple[LowRankDelta, ...]:
    config = json.loads((base / "config.json").read_text())
    return read_deltas(adapter, open_checkpoint(base), config, read_spec(config))


def configure(adapter: Path, **changes: Any) -> None:
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | changes))


def rewrite(adapter: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or take out (None) tensors of layer 0, dots written as double underscores."""
    tensors = load_file(adapter / FILE)
    for key, tensor in changes.items():
        name = PREFIX + key.replace("__", ".") + ".weight"
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, adapter / FILE)


def test_each_delta_says_where_it_belongs(make_llama: Make, make_lora: Make) -> None:
    base = make_llama()
    found = deltas(base, make_lora(base, modules=("k_proj", "up_proj"), rank=3, layers_to_transform=None))
    places = {(delta.place.layer, delta.place.linear, delta.place.first, delta.rank) for delta in found}
    assert places == {(layer, *where, 3) for layer in (0, 1) for where in (("qkv", 64), ("gate_up", 96))}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_dora": True}, "has DoRA"),
        ({"lora_bias": True}, "has lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "has modules trained in full"),
        ({"trainable_token_indices": [3]}, "has trained tokens"),
        ({"bias": "all"}, "has trained biases"),
        ({"init_lora_weights": "pissa"}, "has the pissa initialisation"),
    ],
)
def test_what_only_a_merge_can_do_is_refused(
    changes: dict[str, Any], named: str, make_llama: Make, make_lora: Make
) -> None:
    base = make_llama()
    adapter = make_lora(base)
    configure(adapter, **changes)
    with pytest.raises(AdapterError, match=f"{named}, which only a merge can do; merge it with 'tuneserve export"):
        deltas(base, adapter)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"self_attn__q_proj__lora_A": torch.zeros(4, 63)}, r"q_proj is 64×63 here and 64×64"),
        ({"self_attn__q_proj__lora_B": torch.zeros(32, 4)}, r"q_proj is 32×64 here and 64×64"),
        ({"self_attn__q_proj__lora_B": torch.zeros(64, 5)}, r"A 4×64 and B 64×5 where the configuration says rank 4"),
        ({"self_attn__q_proj__lora_A": None}, "only one of lora_A and lora_B"),
        ({"self_attn__x_proj__lora_A": torch.zeros(4, 64), "self_attn__x_proj__lora_B": torch.zeros(64, 4)}, "x_proj"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    changes: dict[str, Any], named: str, make_llama: Make, make_lora: Make
) -> None:
    base = make_llama()
    adapter = make_lora(base)
    rewrite(adapter, **changes)
    with pytest.raises(AdapterError, match=named):
        deltas(base, adapter)


def test_embeddings_and_the_head_are_refused(make_llama: Make, make_lora: Make) -> None:
    base = make_llama(tie_word_embeddings=False)
    adapter = make_lora(base, modules=("q_proj", "lm_head"))
    with pytest.raises(AdapterError, match=r"lm_head\.weight is no linear layer of attention"):
        deltas(base, adapter)


def test_a_rank_that_costs_more_than_the_weight_is_refused(make_llama: Make, make_lora: Make) -> None:
    base = make_llama()
    with pytest.raises(AdapterError, match="rank 513, above 512"):
        deltas(base, make_lora(base, rank=513, modules=("q_proj",)))


def test_other_kinds_of_adapters_are_refused(make_llama: Make, make_lora: Make) -> None:
    base = make_llama()
    adapter = make_lora(base)
    configure(adapter, peft_type="LOHA")
    with pytest.raises(AdapterError, match="of PEFT type LOHA, and only LoRA"):
        deltas(base, adapter)


@pytest.mark.parametrize(("value", "dtype"), [(torch.nan, "float32"), (torch.inf, "float32"), (1e6, "float16")])
def test_numbers_that_are_not_finite_in_the_models_dtype_are_refused(
    value: float, dtype: str, make_llama: Make, make_lora: Make
) -> None:
    base = make_llama()
    adapter = make_lora(base)
    rewrite(adapter, self_attn__o_proj__lora_B=torch.full((64, 4), value))
    core = NativeCore(EngineConfig(model_dir=str(base), dtype=dtype))
    with pytest.raises(AdapterError, match=f"o_proj.weight is not finite in {dtype}"):
        core.load_adapter("a", adapter)
    assert core.info.adapters == ()


def test_what_is_no_adapter_is_refused(make_llama: Make, make_lora: Make, tmp_path: Path) -> None:
    base = make_llama()
    core = NativeCore(EngineConfig(model_dir=str(base), dtype="float32"))
    truncated = make_lora(base, "truncated")
    (truncated / FILE).write_bytes((truncated / FILE).read_bytes()[:-100])
    for path in (tmp_path / "nowhere", base, truncated):
        with pytest.raises(InputError):
            core.load_adapter("a", path)
    for name in ("", "x" * 101):
        with pytest.raises(InputError, match="1 to 100 characters"):
            core.load_adapter(name, make_lora(base))


def test_others_do_not_stand_beside_one_that_was_folded_in(make_llama: Make, make_lora: Make) -> None:
    base = make_llama()
    adapter = make_lora(base)
    core = NativeCore(EngineConfig(model_dir=str(base), adapter_dir=str(adapter), dtype="float32"))
    with pytest.raises(InputError, match="folded into the weights"):
        core.load_adapter("a", adapter)
