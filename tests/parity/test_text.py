"""Protects: another template, a doubled BOS or a lost stop token is found, whatever the weights are."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.native.conftest import write_byte_tokenizer
from tuneserve import artifacts, parity
from tuneserve.errors import TextError
from tuneserve.parity import TextCheck
from tuneserve.parity._probes import load_tokenizer, make_probes
from tuneserve.parity._text import check_text
from tuneserve.sources import read_config, resolve

Make = Callable[..., Path]
EXPLODING = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


@pytest.fixture(scope="module")
def reference(demo_base: Path) -> Any:
    return load_tokenizer(demo_base)


@pytest.fixture
def candidate(demo_base: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "candidate"
    directory.mkdir()
    for name in (*TEXT_FILES, "config.json"):
        shutil.copy(demo_base / name, directory / name)
    return directory


def failed(reference: Any, candidate: Path, demo_base: Path) -> dict[str, TextCheck]:
    theirs, ours = resolve(demo_base), resolve(candidate)
    checks, notes = check_text(reference, theirs, ours, read_config(candidate / "config.json"))
    assert len(checks) == 7
    assert notes == ()
    return {check.name: check for check in checks if not check.passed}


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in {**values, **changes}.items() if value is not None}))


def test_the_same_files_pass(reference: Any, candidate: Path, demo_base: Path) -> None:
    assert failed(reference, candidate, demo_base) == {}


@pytest.fixture
def broken(tmp_path: Path) -> Callable[..., Any]:
    """Return what writes a tokenizer of 300 tokens with some of its files changed, and loads it by Transformers."""

    def make(template: str | None = None, **changes: Any) -> Any:
        directory = tmp_path / "broken"
        directory.mkdir()
        write_byte_tokenizer(directory, 300)
        if template is not None:
            (directory / "chat_template.jinja").write_text(template)
        edit(directory / "tokenizer.json", **changes)
        return load_tokenizer(directory)

    return make


@pytest.mark.parametrize(
    "template",
    [
        EXPLODING,
        "{% if lipsum is defined %}" + EXPLODING + "{% endif %}",
        "{{ 1 / 0 }}",
        "{{ messages.nothing() }}",
        "{{ raise_exception('no') }}",
        "{% for %}",
    ],
)
def test_a_template_that_explodes_or_fails_is_named(template: str, broken: Callable[..., Any]) -> None:
    with pytest.raises(TextError, match="chat template"):
        make_probes(broken(template), 300)


def test_a_tokenizer_without_tokens_for_a_text_is_named(broken: Callable[..., Any]) -> None:
    model = {"type": "WordLevel", "vocab": {"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3}, "unk_token": "<unk>"}
    with pytest.raises(TextError, match="cannot encode 'What is the capital"):
        make_probes(broken(model=model, pre_tokenizer=None), 300)


def test_a_tokenizer_that_the_library_panics_over_is_named(broken: Callable[..., Any]) -> None:
    with pytest.raises(TextError, match="not one that Transformers loads"):
        broken(normalizer={"type": "Precompiled", "precompiled_charsmap": ""})


def test_a_tokenizer_of_another_model_is_named(broken: Callable[..., Any]) -> None:
    tokenizer = broken()
    assert not make_probes(tokenizer, 300).random
    with pytest.raises(TextError, match="its model 100 of them"):
        make_probes(tokenizer, 100)


def test_a_wrong_template_is_found(reference: Any, candidate: Path, demo_base: Path) -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    (candidate / "chat_template.jinja").write_text(template)
    found = failed(reference, candidate, demo_base)
    assert found["tokens of conversations"].step == "template"
    assert "instead of" in found["tokens of conversations"].detail
    assert "runs on" in found["end of an answer"].detail


def test_a_lost_template_is_found(reference: Any, candidate: Path, demo_base: Path) -> None:
    (candidate / "chat_template.jinja").unlink()
    theirs, ours = resolve(demo_base), resolve(candidate)
    checks, _ = check_text(reference, theirs, ours, {})
    assert TextCheck("tokens of conversations", "template", False, "the candidate has no chat template") in checks


def test_a_bos_that_the_template_doubles_is_found(reference: Any, candidate: Path, demo_base: Path) -> None:
    path = candidate / "chat_template.jinja"
    path.write_text("{{ bos_token }}" + path.read_text())
    found = failed(reference, candidate, demo_base)
    assert found["tokens of conversations"].step == "template"
    assert found["BOS of conversations"].detail == "2 BOS at the start instead of 1"


def test_a_bos_that_the_tokenizer_adds_to_the_templates_is_found(
    reference: Any, candidate: Path, demo_base: Path
) -> None:
    edit(candidate / "tokenizer_config.json", add_bos_token=True)
    found = failed(reference, candidate, demo_base)
    assert found["BOS of conversations"].detail == "2 BOS at the start instead of 1"
    assert found["tokens of plain text"].step == "tokenizer"


def test_a_lost_eos_is_found(reference: Any, candidate: Path, demo_base: Path) -> None:
    edit(candidate / "tokenizer_config.json", eos_token="<|endoftext|>")
    for name in ("generation_config.json", "config.json"):
        edit(candidate / name, eos_token_id=0)
    found = failed(reference, candidate, demo_base)
    assert found["stop tokens"].detail == "[0] instead of [2]"
    assert found["end of an answer"].detail == "no stop token ends it, so it runs on"
    assert set(found) >= {"BOS and EOS of the tokenizer", "BOS and EOS of the configuration"}
    assert {check.step for check in found.values()} == {"stop tokens"}


def test_an_eos_lost_from_one_file_is_found(reference: Any, candidate: Path, demo_base: Path) -> None:
    edit(candidate / "generation_config.json", eos_token_id=None)
    assert set(failed(reference, candidate, demo_base)) == {"BOS and EOS of the configuration"}


def test_other_tokens_are_found(reference: Any, candidate: Path, demo_base: Path) -> None:
    values = json.loads((candidate / "tokenizer.json").read_text())
    values["model"]["merges"] = values["model"]["merges"][:100]
    (candidate / "tokenizer.json").write_text(json.dumps(values))
    assert failed(reference, candidate, demo_base)["tokens of plain text"].step == "tokenizer"


def test_verification_reports_text_and_names_the_step(
    demo_base: Path, tmp_path: Path, write_model: Make, write_adapter: Make
) -> None:
    base = write_model(tmp_path / "base", vocab_size=49152)
    for name in TEXT_FILES:
        shutil.copy(demo_base / name, base / name)
    adapter = write_adapter(tmp_path / "adapter", base)
    artifacts.export(adapter, tmp_path / "out", verify=False)
    report = parity.verify(tmp_path / "out", adapter)
    assert report.passed, report.failures
    assert len(report.text) == 8
    assert report.text[-1].name == "a greedy answer"
    edit(tmp_path / "out" / "generation_config.json", eos_token_id=0)
    broken = parity.verify(tmp_path / "out", adapter)
    assert broken.diagnosis == ("stop tokens",)
    assert replace(broken, text=report.text).passed
