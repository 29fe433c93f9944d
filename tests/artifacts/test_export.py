"""Protects: a merged checkpoint is the unmerged model, is written whole or not at all, and describes itself."""

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuneserve import artifacts
from tuneserve.checkpoint import open_checkpoint
from tuneserve.errors import AdapterError, InputError, OutputError, ParityError, SourceError

Make = Callable[..., Path]
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def expected_weights(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """Return what PEFT's own layers add up to in float32, by the names of the base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings(action="ignore"):
        tuned = PeftModel.from_pretrained(model, str(adapter))
    return {
        name.removeprefix("base_model.model."): layer.base_layer.weight.detach() + layer.get_delta_weight("default")
        for name, layer in tuned.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_plain_lora_merges_to_the_unmerged_model(
    data: st.DataObject, write_model: Make, write_adapter: Make, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("case")
    base = write_model(
        home / "base",
        dtype=torch.float32,
        shards=data.draw(st.sampled_from([1, 3])),
        tie_word_embeddings=data.draw(st.booleans()),
    )
    modules = tuple(data.draw(st.sets(st.sampled_from(LINEARS), min_size=1)))
    rank = data.draw(st.sampled_from([1, 4, 8]))
    alpha_pattern = data.draw(st.sampled_from([{}, {"q_proj": 3}, {"layers.1.mlp.down_proj": 5, "k_proj": 1}]))
    adapter = write_adapter(
        home / "adapter",
        base,
        rank=rank,
        modules=modules,
        dtype=data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        use_rslora=data.draw(st.booleans()),
        lora_alpha=data.draw(st.sampled_from([1, 8, 32])),
        alpha_pattern=alpha_pattern,
    )
    artifacts.export(adapter, home / "out", verify=False)
    expected, ours, before = expected_weights(base, adapter), open_checkpoint(home / "out"), open_checkpoint(base)
    assert expected
    for name in before.tensors:
        wanted = expected.get(name.removesuffix(".weight"), before.read(name))
        assert torch.allclose(ours.read(name).float(), wanted, rtol=2**-8, atol=1e-7), name
    changed = {name for name in before.tensors if not torch.equal(ours.read(name), before.read(name).bfloat16())}
    assert changed == {f"{name}.weight" for name in expected}


def test_an_export_is_verified_described_and_repeatable(make_llama: Make, make_lora: Make, tmp_path: Path) -> None:
    adapter = make_lora(make_llama())
    result = artifacts.export(adapter, tmp_path / "a")
    artifacts.export(adapter, tmp_path / "b", verify=False)
    manifest = artifacts.read_manifest(tmp_path / "a")
    assert manifest is not None
    assert result.parity["merged_16bit"].passed
    assert manifest["parity"]["passed"] is True
    assert manifest["merged_tensors"] == 14
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_a_failed_check_leaves_nothing(
    make_llama: Make, make_lora: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuneserve.adapters import MergedModel

    adapter = make_lora(make_llama(), scale=0.3)
    plain = MergedModel.blocks

    def without_one(self: MergedModel, name: str) -> Iterator[torch.Tensor]:
        if name != "model.layers.1.self_attn.v_proj.weight":
            yield from plain(self, name)
            return
        recipe = self.recipes[name]
        assert recipe.reader is not None
        yield recipe.reader.read(name)

    monkeypatch.setattr(MergedModel, "blocks", without_one)
    with pytest.raises(ParityError, match="nothing was written"):
        artifacts.export(adapter, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_an_output_that_exists_is_left_alone(make_llama: Make, make_lora: Make, tmp_path: Path) -> None:
    adapter = make_lora(make_llama())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="exists"):
        artifacts.export(adapter, tmp_path / "out", verify=False)
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


def test_an_output_that_exists_is_seen_before_anything_is_planned(tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / ("a" * 256)):
        with pytest.raises(OutputError, match="choose another output directory"):
            artifacts.export(tmp_path / "nowhere", out)


def test_a_full_disk_is_seen_before_writing(
    make_llama: Make, make_lora: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    adapter = make_lora(make_llama())
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="free"):
        artifacts.export(adapter, tmp_path / "out", verify=False)
    assert not (tmp_path / "out").exists()


def test_every_mismatch_with_the_base_is_listed(make_llama: Make, make_lora: Make, tmp_path: Path) -> None:
    small, large = make_llama("small"), make_llama("large", hidden_size=96, head_dim=24)
    adapter = make_lora(small)
    with pytest.raises(AdapterError) as raised:
        artifacts.export(adapter, tmp_path / "out", base=str(large))
    assert "model.layers.0.self_attn.q_proj is 64×64 here and 96×96 in the base" in str(raised.value)
    assert "more" in str(raised.value)


def test_an_unknown_method_is_refused(make_llama: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="merged_16bit"):
        artifacts.export(make_llama(), tmp_path / "out", method="magic")


def test_a_base_that_is_missing_is_named(make_llama: Make, make_lora: Make, tmp_path: Path) -> None:
    adapter = make_lora(make_llama(), base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(SourceError, match="--base"):
        artifacts.export(adapter, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
        ({"bias": "some"}, "bias"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"never_heard_of": 1}, "never_heard_of"),
        ({"r": "8"}, "r "),
        ({"r": -1}, "r "),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"target_modules": "(a+)+$"}, "not a target"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    change: dict[str, Any], named: str, make_llama: Make, make_lora: Make, tmp_path: Path
) -> None:
    adapter = make_lora(make_llama(), **change)
    with pytest.raises(AdapterError, match=named):
        artifacts.export(adapter, tmp_path / "out", verify=False)


def test_a_pickled_adapter_is_never_loaded(make_llama: Make, make_lora: Make, tmp_path: Path) -> None:
    adapter = make_lora(make_llama())
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickled"):
        artifacts.export(adapter, tmp_path / "out")


def test_nan_in_an_adapter_is_refused(make_llama: Make, make_lora: Make, tmp_path: Path) -> None:
    adapter = make_lora(make_llama(), scale=float("nan"))
    with pytest.raises(AdapterError, match="not finite"):
        artifacts.export(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_whole_model_goes_through_unchanged(make_llama: Make, tmp_path: Path) -> None:
    base = make_llama(shards=2)
    artifacts.export(base, tmp_path / "out")
    ours, theirs = open_checkpoint(tmp_path / "out"), open_checkpoint(base)
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(ours.read(name), theirs.read(name)) for name in ours.tensors)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
