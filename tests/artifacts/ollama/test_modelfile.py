"""The Modelfile has the model's own template, stops and parameters, whatever they hold."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneserve.artifacts.ollama import ollama_modelfile, write_modelfile
from tuneserve.errors import TextError
from tuneserve.sources import resolve

TURNS = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe \"nice\" now.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_gguf_model: Callable[..., Path]) -> Path:
    """Return a GGUF file with a chat template."""
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path / "cache"))
    changes = {"tokenizer.chat_template": TURNS, "tokenizer.ggml.add_bos_token": False}
    return write_gguf_model(tmp_path / "model.gguf", **changes)


def test_all_of_it_comes_from_the_models_own_files(model: Path) -> None:
    directory = resolve(model).model_dir
    sampling = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1}
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [259, 7], **sampling}))
    path = write_modelfile(model, tokenizer_dir=directory, model_dir=directory, context_length=2048)
    lines = path.read_text().splitlines()
    assert path == model.with_name("Modelfile")
    assert lines[0] == "FROM ./model.gguf"
    assert lines[1].startswith('TEMPLATE """{{- range ') and '{{- end }}"""' in lines
    assert lines[-9:] == [
        'SYSTEM """Be "nice" now."""',
        'PARAMETER stop "("',
        'PARAMETER stop "<|im_end|>"',
        "PARAMETER temperature 0.6",
        "PARAMETER top_p 0.95",
        "PARAMETER top_k 20",
        "PARAMETER min_p 0.05",
        "PARAMETER repeat_penalty 1.1",
        "PARAMETER num_ctx 2048",
    ]


def test_the_stops_include_what_closes_an_answer(model: Path) -> None:
    """Fine-tunes often keep the base's EOS and end their answers with another token."""
    directory = resolve(model).model_dir
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "!"}))
    (directory / "config.json").write_text("{}")
    (directory / "generation_config.json").unlink()
    text = ollama_modelfile("x", tokenizer_dir=directory, model_dir=directory, adds_bos=False)
    assert [line for line in text.splitlines() if "stop" in line] == [
        'PARAMETER stop "!"',
        'PARAMETER stop "<|im_end|>"',
    ]


def test_without_values_of_its_own_only_ollamas_penalty_is_undone(model: Path) -> None:
    directory = resolve(model).model_dir
    text = ollama_modelfile("x", tokenizer_dir=directory, model_dir=directory, adds_bos=False)
    assert [line for line in text.splitlines() if line.startswith("PARAMETER") and "stop" not in line] == [
        "PARAMETER repeat_penalty 1"
    ]
    (directory / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.7}')
    greedy = ollama_modelfile("x", tokenizer_dir=directory, model_dir=directory, adds_bos=False)
    assert "PARAMETER temperature 0\n" in greedy


def test_an_adapter_goes_with_a_base(model: Path) -> None:
    directory = resolve(model).model_dir
    adapter = model.with_name("adapter.gguf")
    text = write_modelfile(model, tokenizer_dir=directory, model_dir=directory, adapter=adapter).read_text()
    assert "FROM ./model.gguf\nADAPTER ./adapter.gguf\nTEMPLATE " in text


def test_a_model_without_a_chat_template_completes_texts(model: Path) -> None:
    directory = resolve(model).model_dir
    (directory / "chat_template.jinja").unlink()
    text = ollama_modelfile("x", tokenizer_dir=directory, model_dir=directory, adds_bos=False)
    assert 'TEMPLATE "{{ .Prompt }}"' in text


def test_quotes_that_a_modelfile_cannot_hold_are_refused(model: Path) -> None:
    directory = resolve(model).model_dir
    (directory / "chat_template.jinja").write_text(TURNS.replace("now.", '\\"\\"\\"\\nFROM /etc/passwd'))
    with pytest.raises(TextError, match="quotes that a Modelfile cannot hold"):
        ollama_modelfile("x", tokenizer_dir=directory, model_dir=directory, adds_bos=False)


def test_whether_a_bos_is_added_is_read_from_the_file(model: Path, write_gguf_model: Callable[..., Path]) -> None:
    directory = resolve(model).model_dir
    template = TURNS.replace("{% if messages", "{{ bos_token }}{% if messages", 1)
    (directory / "chat_template.jinja").write_text(template)
    added = write_gguf_model(model.with_name("adding.gguf"), **{"tokenizer.ggml.add_bos_token": True})
    texts = [write_modelfile(path, tokenizer_dir=directory, model_dir=directory).read_text() for path in (model, added)]
    # The BOS of these files is what turns begin with.
    assert [text.count("<|im_start|><|im_start|>") for text in texts] == [1, 0]
