"""Protects: templates render as in Transformers, and a hostile one is refused quickly."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from tuneserve.errors import InputError, RequestError, TextError
from tuneserve.text import ChatTemplate, UnfinishedError, open_chat_template

MESSAGES = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": ' <b>"Größe"</b> & more\n'},
    {"role": "assistant", "content": "Ja."},
    {"role": "user", "content": "And now?"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "q": "<é>"}}}]
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' ~ m.role + '\n' ~ m['content'] ~ '<|im_end|>' ~ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "headers": (
        "{{- bos_token }}\n{%- if messages[0]['role'] == 'system' %}\n  {%- set sys = messages[0]['content']|trim %}\n"
        "  {%- set messages = messages[1:] %}\n{%- else %}\n  {%- set sys = '' %}\n{%- endif %}\n{{- sys + '\n' }}\n"
        "{%- for m in messages %}\n    {%- if loop.last %}{{ 'last:' }}{% endif %}\n"
        "    {{- '[' + m.role|upper + ']' + m['content'] | trim + '\n' }}\n{%- endfor %}\n"
        "{%- if tools is not none %}{{ tools | tojson(indent=4) }}{% for t in tools %}{{ t|tojson }}{% endfor %}"
        "{% endif %}"
    ),
    "namespace": (
        "{% set ns = namespace(last=-1, n=0) %}{% for m in messages[::-1] %}"
        "{% set i = (messages|length - 1) - loop.index0 %}"
        "{% if m.role == 'user' and ns.last < 0 %}{% set ns.last = i %}{% break %}{% endif %}{% endfor %}{{ ns.last }}"
        "{% macro show(x, y=3) %}{{ x }}:{{ y * 2 }};{% endmacro %}"
        "{% for m in messages if m.role != 'system' %}{% if loop.first %}{% continue %}{% endif %}"
        "{{ show(loop.index ~ '/' ~ loop.length) }}{{ m.content.split('\n')[-1].strip() }}{{ '%' }}{{ '-' * 3 }}"
        "{% generation %}{{ m.content | replace('a', 'bb') | indent(2) }}{% endgeneration %}{% endfor %}"
        "{{ messages | map(attribute='role') | join(',') }}{{ {'b': 1, 'a': [1, 2]} | tojson }}"
        "{{ dict(a=1).items() | list }}{{ messages[0].get('x', 'none') }}"
    ),
}
HOSTILE = {
    "escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__.os }}",
    "import": "{% include '/etc/passwd' %}",
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "doubling": "{% set n = namespace(s='x') %}{% for a in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "adding": "{% set n = namespace(s='x') %}{% for a in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "multiplying": "{{ 'a' * 10**10 }}",
    "list": "{{ [1] * 10**10 }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "square": "{% set n = namespace(s=99) %}{% for a in range(99) %}{% set n.s = n.s * n.s %}{% endfor %}",
    "center": "{{ 'x'.center(10**11) }}",
    "format": "{{ '%99999999999d' % 1 }}",
    "format method": "{{ '{:99999999999d}'.format(1) }}",
    "replace": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "replace filter": "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
    "indent": "{{ ('\n' * 99999) | indent(99999) }}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "output": "{% for a in range(9999) %}{{ 'x' * 99999 }}{% endfor %}",
    "undefined": "{{ nothing.at.all }}",
    "division": "{{ 1 / 0 }}",
    "syntax": "{% for %}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}


def opened(directory: Path, template: str, **config: Any) -> ChatTemplate:
    (directory / "chat_template.jinja").write_text(template)
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<s>"}, **config}))
    found = open_chat_template(directory)
    assert found is not None
    return found


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_text_is_what_transformers_makes(name: str, tools: list[dict[str, Any]] | None, tmp_path: Path) -> None:
    template = opened(tmp_path, TEMPLATES[name])
    (expected,), _ = render_jinja_template(
        [MESSAGES], tools=tools, chat_template=TEMPLATES[name], add_generation_prompt=True, bos_token="<s>"
    )
    assert template.render(MESSAGES, tools=tools) == expected


def test_the_demo_template_renders_as_in_transformers(demo_base: Path) -> None:
    from transformers import AutoTokenizer

    template = open_chat_template(demo_base)
    assert template is not None
    tokenizer = AutoTokenizer.from_pretrained(demo_base)
    for messages in (MESSAGES, MESSAGES[1:], MESSAGES[1:2]):
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert template.render(messages) == expected


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="template"):
        opened(tmp_path, HOSTILE[name]).render(MESSAGES)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_trial_of_a_hostile_template_gives_up_or_refuses(name: str, tmp_path: Path) -> None:
    with pytest.raises((TextError, UnfinishedError)):
        opened(tmp_path, HOSTILE[name]).render(MESSAGES, is_trial=True)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_trial_is_for_short_conversations(name: str, tmp_path: Path) -> None:
    template = opened(tmp_path, TEMPLATES[name])
    assert template.render(MESSAGES, tools=TOOLS, is_trial=True) == template.render(MESSAGES, tools=TOOLS)
    for messages, variables in ((MESSAGES * 500, {}), (MESSAGES, {"x": [0] * 10_000})):
        with pytest.raises(UnfinishedError):
            template.render(messages, variables=variables, is_trial=True)
        assert template.render(messages, variables=variables)


def test_the_refusal_of_a_template_is_the_requests_fault(tmp_path: Path) -> None:
    template = opened(tmp_path, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RequestError, match="roles must alternate"):
        template.render(MESSAGES)


def test_the_final_message_is_continued(tmp_path: Path) -> None:
    template = opened(tmp_path, TEMPLATES["chatml"])
    text = template.render([*MESSAGES, {"role": "assistant", "content": "It is "}], continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\nIt is ")


def test_named_templates_are_chosen_by_tools(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    template = open_chat_template(tmp_path)
    assert template is not None
    assert (template.render(MESSAGES), template.render(MESSAGES, tools=TOOLS)) == ("plain", "with tools")


def test_no_template_is_none(tmp_path: Path) -> None:
    assert open_chat_template(tmp_path) is None


@pytest.mark.parametrize("value", [3, [1], [{"name": "x"}], {"a": 1}])
def test_a_malformed_template_field_is_refused(value: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(TextError, match="chat_template"):
        open_chat_template(tmp_path)
