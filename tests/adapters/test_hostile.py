"""Protects: whatever an adapter directory holds, the answer is one sentence, in bounded time and memory."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tuneserve.adapters import check_patterns_end, open_adapter
from tuneserve.adapters._match import Matcher, PatternValues
from tuneserve.errors import AdapterError

Lab = Any


@pytest.fixture
def base(lab: Lab) -> Path:
    path: Path = lab.base("llama")
    return path


@pytest.fixture
def adapter(lab: Lab, base: Path) -> Path:
    from peft import LoraConfig

    path: Path = lab.adapter(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    return path


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"alora_invocation_tokens": [1, 2]}, "activated LoRA"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "replicated layers"),
        ({"use_qalora": True}, "QALoRA"),
        ({"megatron_config": {"a": 1}}, "Megatron"),
        ({"arrow_config": {"top_k": 1}}, "Arrow"),
        ({"kasa_config": {"beta": 1}}, "KaSA"),
        ({"use_bdlora": {"nblocks": 2}}, "block-diagonal"),
        ({"monteclora_config": {"num_samples": 2}}, "samples"),
        ({"init_lora_weights": "pissa_niter_4"}, "random part.*path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "corda"}, "training data.*path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "lora_ga"}, "training data.*path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, "quantised on the way"),
        ({"init_lora_weights": ["x"]}, "init_lora_weights"),
        ({"never_heard_of": {"a": 1}}, "never_heard_of"),
        ({"use_qalora": True, "never_heard_of": 1}, "QALoRA.*never_heard_of"),
        ({"r": 10**9}, "rank"),
        ({"r": True}, "rank"),
        ({"r": 8}, "rank 8"),
        ({"lora_alpha": 1e300}, "lora_alpha"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"rank_pattern": {"q_proj": "4"}}, "rank"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"target_modules": [1]}, "target_modules"),
        ({"target_modules": "(a+)+$"}, "not a target"),
        ({"target_modules": "("}, "not a regular expression"),
        ({"target_modules": ["q_proj"]}, "v_proj has a delta in the file but is not a target"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "o_proj is a target but has no delta"),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
        ({"modules_to_save": ["a"] * 2000}, "2000 entries"),
        ({"trainable_token_indices": [-1]}, "trainable_token_indices"),
        ({"trainable_token_indices": [1]}, "trained tokens of the embedding are not in the file"),
        ({"use_dora": True}, "magnitudes"),
        ({"lora_bias": True}, "bias"),
        ({"bias": "some"}, "bias='some'"),
        ({"peft_type": None}, "peft_type"),
        ({"layers_to_transform": ["a"]}, "layers_to_transform"),
    ],
    ids=str,
)
def test_configurations(lab: Lab, base: Path, adapter: Path, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(AdapterError, match=named) as raised:
        lab.merge(base, lab.change(adapter, **fields))
    assert "\n" not in str(raised.value)


def test_settings_without_effect_are_taken(lab: Lab, base: Path, adapter: Path) -> None:
    expected = lab.merge(base, adapter).read("model.layers.0.self_attn.q_proj.weight")
    lab.change(
        adapter, unsloth_fixed=True, lora_dropout=0.3, eva_config={"rho": 2.0}, base_model_name_or_path="x-bnb-4bit"
    )
    assert torch.equal(lab.merge(base, adapter).read("model.layers.0.self_attn.q_proj.weight"), expected)


def test_keys_with_the_name_of_the_adapter(lab: Lab, base: Path, adapter: Path) -> None:
    expected = lab.merge(base, adapter).read("model.layers.0.self_attn.q_proj.weight")
    edit(adapter, lambda name: name.replace(".weight", ".mine.weight"))
    assert torch.equal(lab.merge(base, adapter).read("model.layers.0.self_attn.q_proj.weight"), expected)


def test_two_adapters_in_one_file(lab: Lab, base: Path, adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors |= {name.replace(".weight", ".other.weight"): tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="several adapters"):
        lab.merge(base, adapter)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("base_model.model.", "model.", "does not begin with"),
        ("lora_A", "lora_C", "only one of"),
        ("lora_A.weight", "lora_A.extra.extra.weight", "does not account for it|only one of"),
        ("layers.1.", "layers.7.", "layers.7.self_attn.q_proj is not in the base"),
        ("layers.1.self_attn.q_proj.lora_B", "layers.1.self_attn.q_proj.lora_X", "only one of"),
    ],
)
def test_names_in_the_file(lab: Lab, base: Path, adapter: Path, old: str, new: str, named: str) -> None:
    edit(adapter, lambda name: name.replace(old, new))
    with pytest.raises(AdapterError, match=named):
        lab.merge(base, adapter)


def test_shapes_and_dtypes_in_the_file(lab: Lab, base: Path, adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    first = next(iter(tensors))
    save_file(tensors | {first: tensors[first].T.contiguous()}, path)
    with pytest.raises(AdapterError, match="rank 4"):
        lab.merge(base, adapter)
    save_file(tensors | {first: tensors[first].to(torch.int32)}, path)
    with pytest.raises(AdapterError, match="I32"):
        lab.merge(base, adapter)
    save_file(tensors | {first: torch.zeros(())}, path)
    with pytest.raises(AdapterError, match="rank 4"):
        lab.merge(base, adapter)
    save_file({}, path)
    with pytest.raises(AdapterError, match="no LoRA tensors"):
        lab.merge(base, adapter)


@pytest.mark.parametrize("kind", ["missing", "directory", "device", "pipe", "pickle", "text", "loop"])
def test_files_that_are_no_weights(adapter: Path, kind: str) -> None:
    path = adapter / "adapter_model.safetensors"
    path.unlink()
    match kind:
        case "directory":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "pipe":
            os.mkfifo(path)
        case "pickle":
            (adapter / "adapter_model.bin").write_bytes(b"\x80\x02c")
        case "text":
            path.write_text("x" * 100)
        case "loop":
            path.symlink_to(path)
    with pytest.raises(AdapterError):
        open_adapter(adapter)


@pytest.mark.parametrize("kind", ["huge", "deep", "list", "device", "pipe", "missing"])
def test_configurations_that_are_none(adapter: Path, kind: str) -> None:
    path = adapter / "adapter_config.json"
    path.unlink()
    match kind:
        case "huge":
            with path.open("wb") as file:
                file.truncate(100_000_000)
        case "deep":
            path.write_text("[" * 100_000)
        case "list":
            path.write_text("[]")
        case "device":
            path.symlink_to("/dev/zero")
        case "pipe":
            os.mkfifo(path)
    started = time.monotonic()
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        open_adapter(adapter)
    assert time.monotonic() - started < 2


def test_many_names_are_looked_up_not_compared(lab: Lab, base: Path, adapter: Path) -> None:
    names = [f"layer{index}.q_proj" for index in range(300_000)]
    lab.change(adapter, target_modules=["q_proj", "v_proj", *names], rank_pattern=dict.fromkeys(names[:100_000], 3))
    started = time.monotonic()
    assert len(lab.merge(base, adapter).changed) == 4
    assert time.monotonic() - started < 5


def test_a_dot_in_a_pattern_is_any_character_as_in_peft(lab: Lab, base: Path) -> None:
    from peft import LoraConfig

    patterns = {"q.proj": 40, "layers.1.self.attn.v_proj": 9}
    adapter = lab.adapter(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], alpha_pattern=patterns))
    lab.check(base, adapter)


@settings(max_examples=200, deadline=None)
@given(
    patterns=st.lists(
        st.one_of(st.text("q_p.", max_size=5), st.sampled_from([".*", "q|p", "[q_]p", "^q", "p$"])), max_size=4
    ),
    module=st.text("q_p.", min_size=1, max_size=7),
)
def test_the_pattern_that_counts_is_the_one_that_peft_takes(patterns: list[str], module: str) -> None:
    from peft.utils.other import get_pattern_key

    values = {pattern: index for index, pattern in enumerate(patterns)}
    expected = values.get(get_pattern_key(values, module), -1)
    assert PatternValues(values, Matcher()).get(module, -1) == expected


@pytest.mark.parametrize(
    ("old", "new"), [("base_model.model.model.", "base_model.model."), ("base_model.model.", "base_model.model.model.")]
)
def test_two_deltas_of_one_weight_are_refused(lab: Lab, base: Path, adapter: Path, old: str, new: str) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors |= {
        name.replace(old, new, 1): tensor.clone() for name, tensor in tensors.items() if "layers.0.self" in name
    }
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="one and the same weight of the base"):
        lab.merge(base, adapter)


def test_patterns_that_explode_end(lab: Lab, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneserve.adapters import _match

    monkeypatch.setattr(_match, "_BUDGET_SECONDS", 0.5)
    lab.change(adapter, alpha_pattern={"(?:(.)|(.))+(?<=!)": 3})
    started = time.monotonic()
    with pytest.raises(AdapterError, match="takes too long"):
        lab.merge(base, adapter)
    assert time.monotonic() - started < 5
    lab.change(adapter, alpha_pattern={f"(q{index})+": 3 for index in range(1000)})
    with pytest.raises(AdapterError, match="1000 kinds of patterns"):
        lab.merge(base, adapter)


@pytest.mark.parametrize(
    "fields",
    [
        {"alpha_pattern": {"(.|.)*!": 3}},
        {"rank_pattern": {"(.|.)*!": 3}},
        {"target_modules": "(.|.)*!"},
        {"exclude_modules": "(.|.)*!"},
        {"modules_to_save": ["(.|.)*!"]},
        {"layers_pattern": ["(.|.)*!"]},
    ],
    ids=str,
)
def test_patterns_that_peft_would_not_come_to_the_end_of(
    adapter: Path, lab: Lab, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuneserve.adapters import _ends

    monkeypatch.setattr(_ends, "_SECONDS", 1.0)
    modules = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(2)]
    with pytest.raises(AdapterError, match="take too long to match"):
        check_patterns_end(lab.change(adapter, **fields), modules)


def test_patterns_that_are_none_or_end(adapter: Path, lab: Lab) -> None:
    modules = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(100)]
    check_patterns_end(adapter, modules)
    check_patterns_end(lab.change(adapter, target_modules=r"(?:.*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)"), modules)
    with pytest.raises(AdapterError, match="are no regular expressions"):
        check_patterns_end(lab.change(adapter, rank_pattern={"(": 3}), modules)


def test_all_mismatches_are_listed_and_shortened(lab: Lab, base: Path, adapter: Path) -> None:
    other = lab.base("llama", hidden_size=32, num_attention_heads=4)
    with pytest.raises(AdapterError) as raised:
        lab.merge(other, adapter)
    assert "model.layers.0.self_attn.q_proj is 16×16 here and 32×32 in the base" in str(raised.value)
    assert "--base" in str(raised.value)
    json.loads((adapter / "adapter_config.json").read_text())


def edit(adapter: Path, rename: Any) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
