"""Protects: an adapter's tokenizer and chat template are found, and its template alone goes with its base's tokens."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from tuneserve.errors import SourceError
from tuneserve.sources import resolve
from tuneserve.text import open_chat_template, open_tokenizer

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "base", "base: {{ messages[0].content }}")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    directory = tmp_path / "adapter"
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    return directory


def write_tokenizer(directory: Path, template: str) -> Path:
    directory.mkdir(exist_ok=True)
    Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "hi": 2, "<unk>": 3}, unk_token="<unk>")).save(
        str(directory / "tokenizer.json")
    )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    (directory / "config.json").write_text("{}")
    return directory


def shown(source: Path) -> str:
    """Return what is rendered, by Transformers as well."""
    directory = resolve(source).tokenizer_dir
    template, reference = open_chat_template(directory), AutoTokenizer.from_pretrained(directory)
    assert template is not None
    text = template.render(MESSAGES)
    assert text == reference.apply_chat_template(MESSAGES, tokenize=False)
    return text


def test_without_any_the_models_are_taken(adapter: Path, base: Path) -> None:
    assert resolve(adapter).tokenizer_dir == base
    assert shown(adapter) == "base: hi"


def test_a_tokenizer_of_its_own_is_taken_with_its_template(adapter: Path) -> None:
    write_tokenizer(adapter, "own: {{ messages[0].content }}")
    assert resolve(adapter).tokenizer_dir == adapter
    assert shown(adapter) == "own: hi"


def test_a_template_alone_goes_with_the_models_tokens(adapter: Path, base: Path) -> None:
    (adapter / "chat_template.jinja").write_text("{{ bos_token }}own: {{ messages[0].content }}")
    assert shown(adapter) == "<s>own: hi"
    directory = resolve(adapter).tokenizer_dir
    ids = [open_tokenizer(each).encode("hi", add_special_tokens=False) for each in (directory, base)]
    assert ids == [[2], [2]]
    assert resolve(adapter).tokenizer_dir == directory, "made once"
    (adapter / "chat_template.jinja").write_text("changed: {{ messages[0].content }}")
    assert shown(adapter) == "changed: hi"
    assert sorted(path.name for path in adapter.iterdir()) == ["adapter_config.json", "chat_template.jinja"]


def test_a_template_that_is_huge_is_refused(adapter: Path) -> None:
    (adapter / "chat_template.jinja").write_bytes(b"x" * 1_000_001)
    with pytest.raises(SourceError, match="too large for a chat template"):
        resolve(adapter)
