"""A quantised base is used as training saw it, or its 16-bit model stands in; which one, and why, is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneserve.errors import CheckpointError, SourceError
from tuneserve.sources import _hub, resolve
from tuneserve.sources._precision import sixteen_bit_names

SIZES = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 256}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True}


def _model(directory: Path, **changes: Any) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({**SIZES, **changes}))
    return directory


def _adapter(directory: Path, base: str | Path, **changes: Any) -> Path:
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base), **changes}))
    return directory


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A hub that holds what lies in ``tmp_path/hub``; the list grows by what is asked of it."""
    asked = []

    def download(hub_id: _hub.HubId) -> Path:
        asked.append(hub_id.repo)
        directory = tmp_path / "hub" / hub_id.repo
        if not directory.is_dir():
            raise SourceError(f"{hub_id.repo} is not cached and the hub cannot be reached; give a directory.")
        return directory

    monkeypatch.setattr(_hub, "download", download)
    return asked


# What Unsloth's own table of names says, one of each form.
@pytest.mark.parametrize(
    ("quantised", "sixteen_bit"),
    [
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", "unsloth/Llama-3.2-1B-Instruct"),
        ("unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit", "unsloth/Llama-3.2-1B-Instruct"),
        ("unsloth/llama-3.2-1b-instruct-unsloth-bnb-4bit", "unsloth/llama-3.2-1b-instruct"),
        ("unsloth/Qwen3-4B-unsloth-bnb-4bit@main", "unsloth/Qwen3-4B"),
        ("unsloth/Llama-3.1-8B-Instruct-FP8-Block", "unsloth/Llama-3.1-8B-Instruct"),
        ("unsloth/Llama-3.1-8B-Instruct-FP8-Dynamic", "unsloth/Llama-3.1-8B-Instruct"),
        ("Qwen/Qwen3-0.6B-FP8", "Qwen/Qwen3-0.6B"),
        ("unsloth/codellama-34b-bnb-4bit", "codellama/CodeLlama-34b-hf"),
        ("unsloth/solar-10.7b-bnb-4bit", "upstage/SOLAR-10.7B-v1.0"),
        ("unsloth/llama-3-70b-bnb-4bit", "meta-llama/Meta-Llama-3-70B"),
        ("unsloth/llama-3-70b-Instruct-bnb-4bit", "meta-llama/Meta-Llama-3-70B-Instruct"),
        ("unsloth/Meta-Llama-3.1-405B-Instruct-bnb-4bit", "meta-llama/Meta-Llama-3.1-405B-Instruct"),
        ("unsloth/Mistral-Large-Instruct-2407-bnb-4bit", "mistralai/Mistral-Large-Instruct-2407"),
        ("unsloth/c4ai-command-r-plus-08-2024-bnb-4bit", "CohereForAI/c4ai-command-r-plus-08-2024"),
        ("unsloth/Hermes-3-Llama-3.1-405B-bnb-4bit", "NousResearch/Hermes-3-Llama-3.1-405B"),
        ("unsloth/Pixtral-12B-2409-Base-bnb-4bit", "unsloth/Pixtral-12B-Base-2409"),
        ("unsloth/gpt-oss-20b-unsloth-bnb-4bit", "unsloth/gpt-oss-20b-BF16"),
        ("openai/gpt-oss-120b", "unsloth/gpt-oss-120b-BF16"),
    ],
)
def test_names_follow_unsloths_rules(quantised: str, sixteen_bit: str) -> None:
    assert sixteen_bit in sixteen_bit_names(quantised)


@pytest.mark.parametrize("name", ["unsloth/Llama-3.2-1B", "someone/model-GPTQ", "-bnb-4bit", "unsloth/FP8", "demo"])
def test_other_names_say_nothing(name: str) -> None:
    assert sixteen_bit_names(name) == ()


def test_by_default_the_weights_that_training_saw_are_used(tmp_path: Path) -> None:
    base = _model(tmp_path / "Foo-bnb-4bit", quantization_config=NF4)
    _model(tmp_path / "Foo")
    source = resolve(_adapter(tmp_path / "adapter", base))
    assert (source.model_dir, source.base_precision, source.base_name) == (base, "trained", str(base))
    assert source.reason is not None
    assert "quantised (bitsandbytes)" in source.reason
    assert "--base-precision 16bit" in source.reason
    assert resolve(_adapter(tmp_path / "again", base), base_precision="trained") == (resolve(tmp_path / "again"))


@pytest.mark.parametrize("suffix", ["-bnb-4bit", "-unsloth-bnb-4bit", "-FP8"])
def test_sixteen_bit_takes_the_directory_beside_it(tmp_path: Path, suffix: str) -> None:
    base = _model(tmp_path / f"Foo{suffix}", quantization_config=NF4)
    sibling = _model(tmp_path / "Foo")
    source = resolve(_adapter(tmp_path / "adapter", base), base_precision="16bit")
    assert (source.model_dir, source.base_precision, source.base_name) == (sibling, "16bit", str(base))
    assert source.reason is not None
    assert "differ by the error of quantisation" in source.reason


def test_sixteen_bit_from_the_hub_needs_no_quantised_base(tmp_path: Path, hub: list[str]) -> None:
    sibling = _model(tmp_path / "hub" / "unsloth" / "Foo")
    adapter = _adapter(tmp_path / "adapter", "unsloth/Foo-unsloth-bnb-4bit", revision="main")
    source = resolve(adapter, base_precision="16bit")
    assert source.model_dir == source.tokenizer_dir == sibling
    assert hub == ["unsloth/Foo"]


def test_the_original_is_taken_where_unsloth_has_no_copy(tmp_path: Path, hub: list[str]) -> None:
    sibling = _model(tmp_path / "hub" / "meta-llama" / "Meta-Llama-3-70B")
    source = resolve(_adapter(tmp_path / "adapter", "unsloth/llama-3-70b-bnb-4bit"), base_precision="16bit")
    assert source.model_dir == sibling
    assert hub == ["unsloth/llama-3-70b", "meta-llama/Meta-Llama-3-70B"]


def test_the_default_asks_the_hub_for_the_named_base_alone(tmp_path: Path, hub: list[str]) -> None:
    base = _model(tmp_path / "hub" / "unsloth" / "Foo-bnb-4bit", quantization_config=NF4)
    assert resolve(_adapter(tmp_path / "adapter", "unsloth/Foo-bnb-4bit")).model_dir == base
    assert hub == ["unsloth/Foo-bnb-4bit"]


def test_a_whole_model_keeps_its_tokenizer(tmp_path: Path) -> None:
    quantised = _model(tmp_path / "Foo-FP8", quantization_config={"quant_method": "fp8"})
    sibling = _model(tmp_path / "Foo")
    trained = resolve(quantised)
    assert (trained.model_dir, trained.base_precision) == (quantised, "trained")
    assert trained.reason is not None
    assert "adapter" not in trained.reason
    source = resolve(quantised, base_precision="16bit")
    assert (source.model_dir, source.tokenizer_dir, source.name) == (sibling, quantised, "Foo-FP8")


def test_weights_that_are_not_quantised_are_used_as_they_are(tmp_path: Path) -> None:
    base = _model(tmp_path / "Foo")
    adapter = _adapter(tmp_path / "adapter", base)
    assert (resolve(adapter).base_precision, resolve(adapter).reason) == (None, None)
    for precision in ("16bit", "trained"):
        source = resolve(adapter, base_precision=precision)
        assert (source.model_dir, source.base_precision) == (base, precision)
        assert source.reason is not None
        assert "is not quantised" in source.reason


def test_no_other_model_stands_in(tmp_path: Path, hub: list[str]) -> None:
    base = _model(tmp_path / "Foo-bnb-4bit", quantization_config=NF4)
    adapter = _adapter(tmp_path / "adapter", base)

    def refused() -> str:
        with pytest.raises(SourceError, match="use --base-precision trained") as caught:
            resolve(adapter, base_precision="16bit")
        return str(caught.value)

    assert "no 16-bit model was found" in refused()
    sibling = _model(tmp_path / "Foo", hidden_size=128)
    assert f"{sibling} is another model" in refused()
    (sibling / "config.json").write_text(json.dumps({**SIZES, "quantization_config": NF4}))
    assert f"{sibling} is quantised itself" in refused()
    (sibling / "config.json").write_text("[]")
    assert "is not a JSON object" in refused()
    assert hub == []
    base.rename(tmp_path / "Bar")
    adapter = _adapter(tmp_path / "other", tmp_path / "Bar")
    assert "its name does not tell" in refused()


def test_offline_without_the_sixteen_bit_model_says_what_was_tried(tmp_path: Path, hub: list[str]) -> None:
    adapter = _adapter(tmp_path / "adapter", "unsloth/Foo-bnb-4bit")
    with pytest.raises(SourceError, match=r"no 16-bit model .*unsloth/Foo is not cached.*--base-precision trained\.$"):
        resolve(adapter, base_precision="16bit")


@pytest.mark.parametrize("precision", ["16bit", "trained", None])
@pytest.mark.parametrize("name", ["~nobody-here/Foo-bnb-4bit", "x" * 100_000 + "-bnb-4bit", "x\0-bnb-4bit", "../-FP8"])
def test_hostile_names_of_bases_are_typed_errors(tmp_path: Path, hub: list[str], name: str, precision: Any) -> None:
    adapter = _adapter(tmp_path / "adapter", name)
    with pytest.raises(SourceError) as caught:
        resolve(adapter, base_precision=precision)
    assert len(str(caught.value)) < 1000
    assert hub == []


def test_unknown_precisions_are_refused(make_llama: Callable[..., Path]) -> None:
    with pytest.raises(SourceError, match="use 16bit or trained"):
        resolve(make_llama(), base_precision="8bit")  # type: ignore[arg-type]


def test_a_config_that_does_not_say_how_it_is_quantised_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not say how"):
        resolve(_model(tmp_path / "Foo", quantization_config={"bits": 4}))
