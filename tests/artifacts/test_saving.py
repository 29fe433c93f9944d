"""Protects: Unsloth's saving methods do what their arguments say, or refuse by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve import artifacts
from tuneserve.artifacts import SavesArtifacts
from tuneserve.errors import InputError, OutputError
from tuneserve.sources import resolve

Make = Callable[..., Path]


class Model(SavesArtifacts):
    def __init__(self, source: Path) -> None:
        self.source = resolve(source)


@pytest.fixture
def model(make_llama: Make, make_lora: Make) -> Model:
    return Model(make_lora(make_llama()))


class FakeHub:
    """Records what would be uploaded."""

    def __init__(self, token: object = None) -> None:
        FakeHub.calls = [("token", token)]

    calls: list[tuple[str, Any]] = []  # noqa: RUF012

    def create_repo(self, repo_id: str, **options: Any) -> None:
        FakeHub.calls.append(("create", (repo_id, options["private"])))

    def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> None:
        FakeHub.calls.append(("upload", (repo_id, sorted(path.name for path in folder_path.iterdir()), options)))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    monkeypatch.setattr(
        "huggingface_hub.metadata_update", lambda _repo, card, **_: FakeHub.calls.append(("card", card))
    )
    return FakeHub


def test_merged_is_saved_in_shards_of_the_size_asked_for(model: Model, tmp_path: Path) -> None:
    model.save_pretrained_merged(tmp_path / "out", max_shard_size="30KB", maximum_memory_usage=0.5)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    manifest = artifacts.read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest["parity"]["passed"] is True


def test_every_name_of_unsloth_for_a_method_is_known() -> None:
    from tuneserve.artifacts._methods import canonical

    for name in ("lora", "merged_16bit", "merged_4bit", "merged_4bit_forced", "fp8", "dynamic_fp8", "int4", "w8a8"):
        assert canonical(name) in artifacts.METHODS
    for name in ("w4a16_asym", "w4a8", "w4afp8", "torchao_fp8", "portable_int8"):
        with pytest.raises(InputError, match="not known; choose one like"):
            canonical(name)


def test_the_tokenizer_that_is_passed_is_the_one_that_is_saved(model: Model, tmp_path: Path) -> None:
    class Tokenizer:
        def save_pretrained(self, directory: str) -> None:
            (Path(directory) / "tokenizer_config.json").write_text('{"mine": true}')

    from tuneserve.artifacts import _saving

    seen = {}

    def exported(source: Any, out: object, **options: Any) -> None:
        seen["config"] = (source.tokenizer_dir / "tokenizer_config.json").read_text()
        seen["options"] = options

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_saving, "export", exported)
        model.save_pretrained_merged(tmp_path / "out", Tokenizer(), "merged_16bit")
    assert json.loads(seen["config"]) == {"mine": True}
    with pytest.raises(InputError, match="tokenizer cannot be saved"):
        model.save_pretrained_merged(tmp_path / "out", object())


def test_another_process_than_the_main_one_saves_nothing(model: Model, tmp_path: Path) -> None:
    model.save_pretrained_merged(tmp_path / "out", is_main_process=False)
    model.save_pretrained_gguf(tmp_path / "out", is_main_process=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"state_dict": {}}, "state_dict"),
        ({"save_function": torch.load}, "save_function"),
        ({"safe_serialization": False}, "safe_serialization=False"),
        ({"variant": "fp16"}, "variant"),
        ({"save_peft_format": False}, "save_peft_format=False"),
        ({"temporary_location": "/elsewhere"}, "temporary_location"),
        ({"maximum_memory_usage": 0}, "maximum_memory_usage=0"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_what_is_not_honoured_is_refused(options: dict[str, Any], named: str, model: Model, tmp_path: Path) -> None:
    for save in (model.save_pretrained_merged, model.save_pretrained_gguf):
        with pytest.raises(InputError, match=named):
            save(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_gguf_names_and_save_methods_are_mapped(model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="first_conversion"):
        model.save_pretrained_gguf(tmp_path / "out", first_conversion="f16")
    with pytest.raises(InputError, match="not a way to make GGUF"):
        model.save_pretrained_gguf(tmp_path / "out", save_method="merged_4bit")
    model.save_pretrained_gguf(tmp_path / "out", save_method="lora")
    assert [path.suffix for path in (tmp_path / "out").glob("*.gguf")] == [".gguf"]


def test_a_push_uploads_a_verified_export_with_what_was_said(model: Model, hub: type[FakeHub]) -> None:
    model.push_to_hub_merged(
        "me/model", save_method="fp8", token="secret", private=True, revision="v1", tags=["a"], commit_message="hello"
    )
    said = dict(hub.calls)
    assert said["token"] == "secret"
    assert said["create"] == ("me/model", True)
    repo, files, options = said["upload"]
    assert repo == "me/model"
    assert {"config.json", "model.safetensors", "tuneserve.json"} <= set(files)
    assert (options["revision"], options["commit_message"]) == ("v1", "hello")
    assert said["card"] == {"tags": ["a"]}


def test_a_hub_that_refuses_is_one_sentence(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OutputError, match="could not be uploaded to me/model"):
        model.push_to_hub_merged("me/model", save_method="lora")
