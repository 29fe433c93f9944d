"""A way of writing calls each: a template that shows it, and outputs in it after the makers' documentation."""

from dataclasses import dataclass
from typing import Any

SPECIALS = (
    "<|python_tag|>", "<|python_start|>", "<|python_end|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|tool_call|>",
    "[THINK]", "[/THINK]", "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>",
    "<|return|>",
)  # fmt: skip

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 8},
                "days": {"type": "integer", "minimum": 0, "maximum": 9},
                "unit": {"enum": ["c", "f"]},
                "exact": {"type": "boolean"},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}

Calls = list[tuple[str, dict[str, object]]]
PARIS: Calls = [("get_weather", {"city": "Paris", "days": 3})]
BOTH: Calls = [*PARIS, ("now", {})]


@dataclass(frozen=True)
class Sample:
    """``output`` has ``calls`` and the text ``content`` in it."""

    template: str
    name: str
    output: str
    calls: Calls
    content: str = ""
    reasoning: str = ""


_LOOP = "{% for m in messages %}{{ m.content }}{% endfor %}"
HERMES = "{% if tools %}<tools>{{ tools | tojson }}</tools> answer in <tool_call></tool_call>{% endif %}" + _LOOP
QWEN3 = HERMES + "{% if add_generation_prompt %}assistant\n{% endif %}{# <think> </think> #}"
XML = "{% if tools %}<tool_call>\n<function=name>\n<parameter=key>\nvalue\n</parameter>{% endif %}" + _LOOP
LLAMA = '{% if tools %}Answer {"name": function name, "parameters": arguments}.{% endif %}' + _LOOP
PYTHONIC = "{% if tools %}Answer [func_name1(params_name1=params_value1), func_name2()]{% endif %}" + _LOOP
LLAMA4 = "{% if tools %}<|python_start|>[func()]<|python_end|>{% endif %}" + _LOOP
MISTRAL = "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]" + _LOOP
MISTRAL_NAMED = MISTRAL + "[ARGS]"
MISTRAL_ID = MISTRAL + "[CALL_ID][ARGS]"
MAGISTRAL = MISTRAL + "[ARGS] [THINK][/THINK]"
GRANITE = "{% if tools %}Write <|tool_call|> and a list.{% endif %}" + _LOOP
HARMONY = "{% if tools %}namespace functions{% endif %}<|start|>assistant<|channel|>final<|message|>" + _LOOP

_OBJECT = '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}'
_NOW = '{"name": "now", "arguments": {}}'
_TAGGED = f"<tool_call>\n{_OBJECT}\n</tool_call>"
_FUNCTION = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
    "</function>\n</tool_call>"
)
_LLAMA = _OBJECT.replace("arguments", "parameters")
_COMMENTARY = (
    '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris", "days": 3}<|call|>'
)

SAMPLES = [
    Sample(HERMES, "hermes", _TAGGED, PARIS),
    Sample(HERMES, "hermes", f"Let me see.\n{_TAGGED}\n<tool_call>\n{_NOW}\n</tool_call>", BOTH, "Let me see.\n"),
    Sample(HERMES, "hermes", f"{_TAGGED}\nThat is all.", PARIS, "\nThat is all."),
    Sample(HERMES, "hermes", f"I write <tool_call> so: {_TAGGED}", PARIS, "I write <tool_call> so: "),
    Sample(HERMES, "hermes", _TAGGED.removesuffix("\n</tool_call>"), PARIS),
    Sample(
        HERMES,
        "hermes",
        '<tool_call>{"name": "now", "arguments": {"a": "</tool_call> \\"}é"}}</tool_call>',
        [("now", {"a": '</tool_call> "}é'})],
    ),
    Sample(QWEN3, "hermes", f"<think>\nHm.\n\nYes.\n</think>\n\n{_TAGGED}", PARIS, "", "Hm.\n\nYes."),
    Sample(QWEN3, "hermes", "<think>\n\n</think>\n\nHello <think> you", [], "Hello <think> you"),
    Sample(XML, "qwen-xml", _FUNCTION, PARIS),
    Sample(
        XML,
        "qwen-xml",
        "Now:\n<function=get_weather>\n<parameter=city>\n3\n4</function>\n</parameter>\n<parameter=exact>True</parameter>"
        "</function>",
        [("get_weather", {"city": "3\n4</function>", "exact": True})],
        "Now:\n",
    ),
    Sample(XML, "qwen-xml", _TAGGED, PARIS),
    Sample(LLAMA, "llama", _LLAMA, PARIS),
    Sample(LLAMA, "llama", f"<|python_tag|>{_LLAMA}; {_NOW}", BOTH),
    Sample(LLAMA, "llama", '{"type": "function", "name": "now", "parameters": {}}', [("now", {})]),
    Sample(LLAMA, "llama", '{"name": "Ada", "age": 36}', [], '{"name": "Ada", "age": 36}'),
    Sample(LLAMA, "llama", '{"city": {"name": "now"}}', [], '{"city": {"name": "now"}}'),
    Sample(PYTHONIC, "pythonic", "[get_weather(city='Paris', days=3), now()]", BOTH),
    Sample(
        PYTHONIC,
        "pythonic",
        r"""[now(a="it's\n\u00e9", b=[1, -2.5, (True, None)], c={'k': "[x("}, d='\d')]""",
        [("now", {"a": "it's\né", "b": [1, -2.5, [True, None]], "c": {"k": "[x("}, "d": "\\d"})],
    ),
    Sample(PYTHONIC, "pythonic", "[1, 2] are numbers", [], "[1, 2] are numbers"),
    Sample(LLAMA4, "pythonic", "<|python_start|>[get_weather(city='Paris', days=3)]<|python_end|>", PARIS),
    Sample(MISTRAL, "mistral", f"[TOOL_CALLS][{_OBJECT}, {_NOW}]", BOTH),
    Sample(MISTRAL, "mistral", f"Well. [TOOL_CALLS] [{_OBJECT}]", PARIS, "Well. "),
    Sample(MISTRAL_NAMED, "mistral-named", '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 3}', PARIS),
    Sample(
        MISTRAL_ID,
        "mistral-named",
        '[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{"city": "Paris", "days": 3}[TOOL_CALLS]now[ARGS]{}',
        BOTH,
    ),
    Sample(MAGISTRAL, "mistral-named", "[THINK]Hm.[/THINK][TOOL_CALLS]now[ARGS]{}", [("now", {})], "", "Hm."),
    Sample(GRANITE, "granite", f"<|tool_call|>[{_OBJECT}, {_NOW}]", BOTH),
    Sample(GRANITE, "granite", f"<tool_call>[{_OBJECT}]", PARIS),
    Sample(HARMONY, "harmony", "<|channel|>final<|message|>Hi.<|return|>", [], "Hi."),
    Sample(
        HARMONY,
        "harmony",
        f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant{_COMMENTARY}",
        PARIS,
        "",
        "Hm.",
    ),
    Sample(
        HARMONY,
        "harmony",
        "<|channel|>commentary<|message|>Plan.<|end|><|start|>assistant to=functions.now<|channel|>commentary json"
        "<|message|>{}<|call|>",
        [("now", {})],
        "Plan.",
    ),
]
"""Outputs without a call, or with none whose arguments begin as they should, come out as they are."""
MALFORMED = [
    (HERMES, "<tool_call>"),
    (HERMES, "a <tool_call>\n{not json}\n</tool_call> b"),
    (HERMES, '<tool_call>{"name": "now", "arguments": [1]}</tool_call>'),
    (HERMES, '<tool_call>{"arguments": {}}</tool_call>'),
    (XML, "<tool_call>\n<function=now>junk</function>\n</tool_call>"),
    (HERMES, '<tool_call>{"arguments": {"a": NaN}, "name": "now"}</tool_call>'),
    (HERMES, '<tool_call>{"arguments": ' + '{"a":' * 200 + "1" + "}" * 200 + ', "name": "now"}'),
    (HERMES, '<tool_call>{"x" "name": "now", "arguments": {}}</tool_call>'),
    (XML, "<tool_call>\n<functio"),
    (LLAMA, '{"name": "nobody", "parameters": {}}'),
    (LLAMA, "<|python_tag|>print(1)"),
    (PYTHONIC, "[nobody(a=1)]"),
    (PYTHONIC, "[now(1)]"),
    (PYTHONIC, "[now(a=1.0e999)]"),
    (PYTHONIC, "[now(a=" + "[" * 200),
    (MISTRAL, "[TOOL_CALLS][1]"),
    (MISTRAL_NAMED, "[TOOL_CALLS]two words{}"),
    (MISTRAL_NAMED, "[TOOL_CALLS]" + "x" * 500),
    (GRANITE, "<|tool_call|>[]"),
]
"""Outputs that break off or go wrong within a call: the arguments as they were written, and the text that is left."""
BROKEN = [
    (HERMES, '<tool_call>\n{"name": "now", "arguments": {"a": ', '{"a": ', ""),
    (HERMES, '<tool_call>{"name": "now", "arguments": {"a": NaN}}</tool_call>', '{"a": NaN}', ""),
    (HERMES, '<tool_call>{"name": "now", "arguments": {"a": 1</tool_call>', '{"a": 1', ""),
    (HERMES, '<tool_call>{"name": "now", "arguments": {}\n</tool_call>', "{}", ""),
    (HERMES, '<tool_call>{"name": "now", "arguments": {} and', "{}", " and"),
    (HERMES, '<tool_call>{"name": "now", "arguments": {"a": [}}', '{"a": [', "}}"),
    (HERMES, '<tool_call>{"name": "now", "arguments": {}, "x"}</tool_call>', "{}", ', "x"}</tool_call>'),
    (
        HERMES,
        '<tool_call>{"name": "now", "arguments": ' + '{"a":' * 200 + "1" + "}" * 201,
        '{"a":' * 100,
        '{"a":' * 100 + "1" + "}" * 201,
    ),
    (XML, "<function=now>\n<parameter=a>\n1\n</function>", '{"a": "1\\n</function>', ""),
    (XML, "<function=now>\n<parameter=a>1</parameter> and", '{"a": "1"}', " and"),
    (LLAMA, '{"name": "now", "parameters": {"a": "b', '{"a": "b', ""),
    (PYTHONIC, "[now(), nobody()]", "{}", ", nobody()]"),
    (MISTRAL, '[TOOL_CALLS][{"name": "now", "arguments": {}}, 1]', "{}", ", 1]"),
    (MISTRAL_NAMED, '[TOOL_CALLS]now[ARGS]{"a": "\n', '{"a": "\\n', ""),
    (HARMONY, "<|channel|>commentary to=functions.now<|message|>{} and<|call|>", "{}", " and"),
    (HARMONY, '<|channel|>commentary to=functions.now<|message|>{"a": ', '{"a": ', ""),
]
