"""What Ollama makes of a conversation is what the model's own template makes of it, or the template is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneserve.artifacts.ollama._evaluate import GoTemplateError, render_go
from tuneserve.artifacts.ollama._template import OllamaTemplate, translate
from tuneserve.errors import TextError
from tuneserve.text import open_chat_template

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are Quiz.<|im_end|>\n' }}{% endif %}" + CHATML
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% else %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% set role = 'model' %}{% else %}"
    "{% set role = m['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + m['content'] | trim "
    "+ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}{{ bos_token }}"
    "{% for m in loop_messages %}{% if m['role'] == 'user' %}{% if loop.last and system_message is defined %}"
    "{{ '[INST] ' + system_message + '\n\n' + m['content'] + '[/INST]' }}{% else %}"
    "{{ '[INST] ' + m['content'] + '[/INST]' }}{% endif %}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
SYSTEM, USER = {"role": "system", "content": "S"}, {"role": "user", "content": "U"}
ANSWER, AGAIN = {"role": "assistant", "content": "A"}, {"role": "user", "content": "V"}

Translate = Callable[..., OllamaTemplate]


@pytest.fixture
def translated(tmp_path: Path) -> Translate:
    """Return what translates a template written in Jinja."""

    def make(source: str, *, adds_bos: bool = True) -> OllamaTemplate:
        (tmp_path / "chat_template.jinja").write_text(source)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
        template = open_chat_template(tmp_path)
        assert template is not None
        return translate(template, adds_bos=adds_bos)

    return make


@pytest.mark.parametrize(
    ("source", "alone", "conversation"),
    [
        (
            CHATML,
            "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
            "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n",
        ),
        (LLAMA2, "[INST] U [/INST]", "[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]"),
        (
            LLAMA3,
            "<|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
            "U<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (GEMMA, "<start_of_turn>user\nU<end_of_turn>\n<start_of_turn>model\n", None),
        (
            PHI3,
            "<|user|>\nU<|end|>\n<|assistant|>\n",
            "<|system|>\nS<|end|>\n<|user|>\nU<|end|>\n<|assistant|>\nA<|end|>\n<|user|>\nV<|end|>\n<|assistant|>\n",
        ),
        (MISTRAL, "[INST] U[/INST]", "[INST] U[/INST] A</s>[INST] S\n\nV[/INST]"),
        (
            ZEPHYR,
            "<|user|>\nU</s>\n<|assistant|>\n",
            "<|system|>\nS</s>\n<|user|>\nU</s>\n<|assistant|>\nA</s>\n<|user|>\nV</s>\n<|assistant|>\n",
        ),
    ],
    ids=["chatml", "llama 2", "llama 3", "gemma", "phi 3", "mistral", "zephyr"],
)
def test_conversations_are_what_the_family_writes(
    translated: Translate, source: str, alone: str, conversation: str | None
) -> None:
    written = translated(source).source
    assert render_go(written, [USER]) == alone
    if conversation is None:
        with pytest.raises(GoTemplateError, match="this model's template has no system messages"):
            render_go(written, [SYSTEM, USER])
    else:
        assert render_go(written, [SYSTEM, USER, ANSWER, AGAIN]) == conversation


def test_the_bos_is_left_to_llama_cpp_only_where_it_adds_one(translated: Translate) -> None:
    assert render_go(translated(MISTRAL, adds_bos=True).source, [USER]) == "[INST] U[/INST]"
    assert render_go(translated(MISTRAL, adds_bos=False).source, [USER]) == "<s>[INST] U[/INST]"
    assert any("BOS" in note for note in translated(CHATML, adds_bos=True).notes)
    assert not any("BOS" in note for note in translated(CHATML, adds_bos=False).notes)


def test_a_default_system_message_is_found(translated: Translate, demo_base: Path) -> None:
    assert translated(QWEN).turns.default_system == "You are Quiz."
    demo = open_chat_template(demo_base)
    assert demo is not None
    found = translate(demo, adds_bos=False)
    assert found.turns.default_system == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    given = [{"role": "system", "content": found.turns.default_system}, USER]
    assert render_go(found.source, given) == demo.render([USER])


def test_an_answer_is_continued_where_the_template_does_so(translated: Translate) -> None:
    written = translated(CHATML).source
    assert render_go(written, [USER, ANSWER]) == "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA"
    changing = CHATML.replace(
        "m['content']", "(m['content'] if not loop.last or m.role == 'user' else 'x' + m.content)"
    )
    with pytest.raises(GoTemplateError, match="does not continue answers"):
        render_go(translated(changing).source, [USER, ANSWER])


def test_roles_that_the_template_does_not_know_make_it_fail(translated: Translate) -> None:
    with pytest.raises(GoTemplateError, match="only messages of the system, the user and the assistant"):
        render_go(translated(CHATML).source, [USER, {"role": "tool", "content": "x"}])
    first_only = CHATML.replace(
        "{% for",
        "{% if messages[1:] | selectattr('role', 'equalto', 'system') | list %}"
        "{{ raise_exception('late') }}{% endif %}{% for",
        1,
    )
    with pytest.raises(GoTemplateError, match="must be the first"):
        render_go(translated(first_only).source, [USER, ANSWER, SYSTEM, AGAIN])


def test_texts_of_any_kind_survive(translated: Translate) -> None:
    odd = CHATML.replace("<|im_end|>\n", '<"}}{{end}} \\\\x\t\u2028>\n\n')
    rendered = render_go(translated(odd).source, [USER])
    assert rendered == '<|im_start|>user\nU<"}}{{end}} \\x\t\u2028>\n\n<|im_start|>assistant\n'


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for m in messages | reverse %}{{ m.content }}\n{% endfor %}", "in their order"),
        ("{% for m in messages %}{{ m.content | upper }}\n{% endfor %}", "as it is, once"),
        ("{% for m in messages %}{{ m.content ~ m.content }}\n{% endfor %}", "as it is, once"),
        ("{{ messages[-1].content }}", "as it is, once"),
        ("{{ raise_exception('no') }}", "refuses a conversation of one message"),
        ("{% for m in messages %}[{{ messages | length }}]{{ m.content }}\n{% endfor %}", "differently in longer"),
        ("{% for m in messages %}[{{ loop.index }}]{{ m.content }}\n{% endfor %}", "in a way of its own"),
        ("{% for m in messages %}{{ m.content | length }}:{{ m.content }}\n{% endfor %}", "in a way of its own"),
        ("{% for m in messages %}{{ m.content | replace('=', ' ') }}\n{% endfor %}", "in a way of its own"),
        ("{% if messages[2:] %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}", "of 3 messages"),
        ("{% for m in messages %}{{ '\\ud800' + m.content }}\n{% endfor %}", "not Unicode"),
        ("{% for a in range(10 ** 9) %}{% endfor %}{{ messages[0].content }}", "refuses a conversation"),
    ],
)
def test_templates_that_do_more_than_write_turns_are_refused(translated: Translate, source: str, reason: str) -> None:
    with pytest.raises(TextError, match=rf"because it .*{reason}.*; serve the model with llama.cpp's --jinja"):
        translated(source)


@pytest.mark.parametrize(
    ("source", "note"),
    [
        (LLAMA3, "strips the white space"),
        (CHATML.replace("m['content']", "m['content'].split('</think>')[-1]"), "reasoning"),
        (CHATML + "{% if tools %}{{ tools }}{% endif %}", "tools"),
        (CHATML + "{# strftime_now #}", "date"),
    ],
)
def test_what_is_left_out_is_noted(translated: Translate, source: str, note: str) -> None:
    assert any(note in found for found in translated(source).notes)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        # From the documentation of text/template: markers trim the text beside them, constants print as they are.
        ('{{"output"}}', "output"),
        ('a \n {{- "b" -}} \n c', "abc"),
        ('a {{ "b" }} c', "a b c"),
        ("{{ if .System }}T1{{ else }}T0{{ end }}", "T1"),
        ("{{ if not .System }}T1{{ else if .Messages }}T2{{ end }}", "T2"),
        ("{{ range $i, $m := .Messages }}{{ $i }}{{ .Role }}{{ $m.Content }};{{ end }}", "0systemS;1userU\n\nV;"),
        (
            "{{ $x := true }}{{ range $i, $_ := .Messages }}{{ $x = false }}{{ end }}{{ if $x }}1{{ else }}2{{ end }}",
            "2",
        ),
        ("{{ if and .System (eq (len (slice .Messages 1)) 1) }}{{ .System }}{{ end }}", "S"),
    ],
)
def test_the_evaluator_follows_the_documentation(template: str, expected: str) -> None:
    assert render_go(template, [SYSTEM, USER, AGAIN]) == expected
