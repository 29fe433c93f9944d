"""Protects: calls and thoughts are found however the text is cut, and nothing that a model says is lost."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from tests.text.tool_samples import (
    BROKEN,
    GRANITE,
    HARMONY,
    HERMES,
    LLAMA,
    MALFORMED,
    MISTRAL,
    MISTRAL_NAMED,
    NOW,
    QWEN3,
    SAMPLES,
    SPECIALS,
    WEATHER,
    XML,
    Sample,
)
from tuneserve.errors import RequestError
from tuneserve.text import Detokenizer, Tokenizer, open_tokenizer
from tuneserve.text.tools import (
    CallArguments,
    CallStarted,
    Content,
    Event,
    Parser,
    Reasoning,
    check_tools,
    reasoning_format,
    template_messages,
    tool_format,
    visible_ids,
)

TOOLS = check_tools([WEATHER, NOW])


@pytest.fixture(scope="session")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Return a tokenizer of bytes that has the markers as special tokens."""
    directory = tmp_path_factory.mktemp("marked")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["</s>", *SPECIALS]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["the weather of the city"], trainer)
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    return open_tokenizer(directory)


def parser(template: str, tokenizer: Tokenizer, prompt: str = "") -> Parser:
    return Parser(tool_format(template, tokenizer), reasoning_format(template, tokenizer), TOOLS, prompt)


def parsed(parser: Parser, pieces: list[str]) -> list[Event]:
    return [event for piece in pieces for event in parser.push(piece)] + parser.finish()


def written(events: list[Event]) -> tuple[list[tuple[str, str]], str, str]:
    """Return the calls with the text of their arguments, the content and the reasoning; check the order of events."""
    calls: list[tuple[str, str]] = []
    for event in events:
        if isinstance(event, CallStarted):
            assert event.index == len(calls)
            calls.append((event.name, ""))
        elif isinstance(event, CallArguments):
            assert event.index == len(calls) - 1
            assert event.fragment
            calls[-1] = (calls[-1][0], calls[-1][1] + event.fragment)
        else:
            assert event.text
    content = "".join(event.text for event in events if isinstance(event, Content))
    return calls, content, "".join(event.text for event in events if isinstance(event, Reasoning))


def said(events: list[Event]) -> tuple[list[tuple[str, Any]], str, str]:
    """Return the same with the arguments decoded."""
    calls, content, reasoning = written(events)
    return [(name, json.loads(arguments)) for name, arguments in calls], content, reasoning


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample.name}-{sample.output[:30]!r}")
def test_what_is_documented_is_understood_wherever_it_is_cut(sample: Sample, marked: Tokenizer) -> None:
    found = tool_format(sample.template, marked)
    assert found is not None
    assert found.name == sample.name
    expected = (sample.calls, sample.content, sample.reasoning)
    output = sample.output
    assert said(parsed(parser(sample.template, marked), list(output))) == expected
    for cut in range(len(output) + 1):
        assert said(parsed(parser(sample.template, marked), [output[:cut], output[cut:]])) == expected


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample.name}-{sample.output[:30]!r}")
def test_tokens_give_the_same_as_text(sample: Sample, marked: Tokenizer) -> None:
    found, thoughts = tool_format(sample.template, marked), reasoning_format(sample.template, marked)
    detokenizer = Detokenizer(marked, visible_ids(found, thoughts))
    ids = marked.encode(sample.output, add_special_tokens=False)
    pieces = [detokenizer.push([index]) for index in ids] + [detokenizer.finish()]
    assert said(parsed(Parser(found, thoughts, TOOLS), pieces)) == (sample.calls, sample.content, sample.reasoning)


@pytest.mark.parametrize(("template", "output"), MALFORMED, ids=lambda value: repr(value)[:40])
def test_a_malformed_call_is_content_in_full(template: str, output: str, marked: Tokenizer) -> None:
    for pieces in ([output], list(output)):
        assert said(parsed(parser(template, marked), pieces)) == ([], output, "")


@pytest.mark.parametrize(("template", "output", "arguments", "rest"), BROKEN, ids=lambda value: repr(value)[:40])
def test_a_call_that_goes_wrong_keeps_its_arguments_and_the_rest_is_content(
    template: str, output: str, arguments: str, rest: str, marked: Tokenizer
) -> None:
    for pieces in ([output], list(output)):
        assert written(parsed(parser(template, marked), pieces)) == ([("now", arguments)], rest, "")


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample.name}-{sample.output[:30]!r}")
def test_arguments_come_as_they_are_written(sample: Sample, marked: Tokenizer) -> None:
    """They come in many pieces; what is no string in tags comes whole."""
    if sample.name == "pythonic" or not any(arguments for _, arguments in sample.calls):
        return
    streaming = parser(sample.template, marked)
    pieces = [event.fragment for c in sample.output for event in streaming.push(c) if isinstance(event, CallArguments)]
    assert len(pieces) > max(len(json.dumps(call)) for _, call in sample.calls) // 4


@pytest.mark.parametrize(
    "call",
    [
        '{"arguments": {"a": [1]}, "name": "now"}',
        '{"name": "now", "arguments": "{\\"a\\": [1]}"}',
        '{"type": "function", "function": {"name": "now", "arguments": {"a": [1]}}}',
    ],
)
def test_arguments_that_cannot_come_in_pieces_come_whole(call: str, marked: Tokenizer) -> None:
    events = parsed(parser(HERMES, marked), list(f"<tool_call>{call}</tool_call>"))
    assert events == [CallStarted(0, "now"), CallArguments(0, '{"a": [1]}')]


PARTS = ["<tool_call>", "</tool_call>", "{", "}", "[", '"name": ', '"now"', '"arguments": {}', ", ", "now(", ")", "a"]
PARTS += ["<function=now>", "</function>", "<parameter=a>", "</parameter>", "<think>", "\n", '{"name": "now"}', "]"]
PARTS += ["<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "<|tool_call|>", "now", "<", "é"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=12), st.integers(0, len(SAMPLES) - 1), st.data())
def test_pieces_do_not_matter_and_text_without_calls_is_unchanged(parts: list[str], index: int, data: Any) -> None:
    template = SAMPLES[index].template
    if template == HARMONY:
        return
    text = "".join(parts)
    calls, content, _ = written(in_pieces(template, text, data))
    assert (calls, content) == written(parsed(Parser(tool_format(template, _bare()), None, TOOLS), [text]))[:2]
    if not calls:
        assert content == text


def in_pieces(template: str, text: str, data: Any) -> list[Event]:
    """Return the events of ``text`` cut anyhow."""
    form, bare = tool_format(template, _bare()), _bare()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return parsed(Parser(form, reasoning_format(template, bare) if template == HARMONY else None, TOOLS), pieces)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
# How each format writes a call of now with these arguments, which are JSON.
WRITTEN = {
    HERMES: '<tool_call>\n{{"name": "now", "arguments": {}}}\n</tool_call>',
    LLAMA: '{{"type": "function", "name": "now", "parameters": {}}}',
    MISTRAL: '[TOOL_CALLS][{{"name": "now", "arguments": {}}}]',
    MISTRAL_NAMED: "[TOOL_CALLS]now[ARGS]{}",
    GRANITE: '<|tool_call|>[{{"name": "now", "arguments": {}}}]',
    HARMONY: "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|call|>",
}


@settings(deadline=None)
@given(st.sampled_from(sorted(WRITTEN)), st.dictionaries(st.text(max_size=5), VALUES, max_size=4), st.data())
def test_arguments_in_pieces_are_the_arguments(template: str, arguments: dict[str, Any], data: Any) -> None:
    text = json.dumps(arguments, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 2])))
    output = WRITTEN[template].format(text)
    assert written(in_pieces(template, output, data)) == ([("now", text)], "", "")


@settings(deadline=None)
@given(st.sampled_from(sorted(WRITTEN)), st.data())
def test_a_call_that_is_tampered_with_loses_nothing_and_repeats_nothing(template: str, data: Any) -> None:
    """Words of the arguments, and one put anywhere behind where they begin, come out once each."""
    output = WRITTEN[template].format('{"one": ["two", {"three": 4567}]}')
    at = data.draw(st.integers(output.index("one"), len(output)))
    end = data.draw(st.integers(at, len(output)))
    tampered = (
        output[:at] + data.draw(st.sampled_from(["eight", '"eight', "{eight", "]eight", "\\eight"])) + output[end:]
    )
    calls, content, _ = written(in_pieces(template, tampered, data))
    everything = "".join(arguments for _, arguments in calls) + content
    for word in ("one", "two", "three", "4567", "eight"):
        assert everything.count(word) == tampered.count(word), (calls, content)


def _bare() -> Tokenizer:
    none: frozenset[int] = frozenset()
    return Tokenizer(Backend(models.BPE()), 0, None, None, none, none, none, ())


HOSTILE = [
    "<tool_call>",
    "<tool_call>{",
    "[",
    "{",
    '{"name":',
    "[now(",
    "<function=now>",
    "<parameter=",
    "[TOOL_CALLS]",
]
HOSTILE += [
    "<think>",
    " ",
    "\n",
    "<",
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<tool_call>{}",
    "\\",
    "[TOOL_CALLS][",
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_hostile_output_is_got_through_and_kept(unit: str, marked: Tokenizer) -> None:
    for template in {sample.name: sample.template for sample in SAMPLES}.values():
        for size, length in ((1, 2_000), (50_000, 100_000)):
            text = unit * (length // len(unit))
            pieces = [text[at : at + size] for at in range(0, len(text), size)]
            calls, content, _ = said(parsed(Parser(tool_format(template, marked), None, TOOLS), pieces))
            assert template == HARMONY or content == ("" if calls else text)


def test_thoughts_that_the_prompt_began_are_thoughts(marked: Tokenizer) -> None:
    begun = parser(QWEN3, marked, "user: hi\nassistant\n<think>\n")
    assert said(parsed(begun, ["Hm", ".\n</th", "ink>\n\nHi"])) == ([], "Hi", "Hm.")
    ended = parser(QWEN3, marked, "assistant\n<think>\n\n</think>\n\n")
    assert said(parsed(ended, ["Hi </think>"])) == ([], "Hi </think>", "")
    cut = parser(QWEN3, marked, "<think>")
    assert said(parsed(cut, ["no end <tool_call>"])) == ([], "", "no end <tool_call>")


def test_a_turn_that_the_prompt_began_goes_on(marked: Tokenizer) -> None:
    prompt = "<|start|>user<|message|>hi<|end|><|start|>assistant<|channel|>final<|message|>He"
    assert said(parsed(parser(HARMONY, marked, prompt), ["llo<|return|>"])) == ([], "llo", "")


def test_text_comes_as_soon_as_it_cannot_be_a_marker(marked: Tokenizer) -> None:
    streaming = parser(HERMES, marked)
    assert streaming.push("Hello <tool") == [Content("Hello ")]
    assert streaming.push("box>") == [Content("<toolbox>")]


def test_what_is_special_and_no_marker_stays_hidden(marked: Tokenizer) -> None:
    ids = marked.encode("a[TOOL_CALLS]é<|call|>b</s>", add_special_tokens=False)
    shown = marked.backend.token_to_id("[TOOL_CALLS]")
    assert shown is not None
    detokenizer = Detokenizer(marked, frozenset({shown}))
    assert "".join(detokenizer.push([i]) for i in ids) + detokenizer.finish() == "a[TOOL_CALLS]éb"
    plain = Detokenizer(marked)
    assert plain.push(ids) + plain.finish() == "aéb"


def test_a_template_without_calls_or_thoughts_has_none(marked: Tokenizer) -> None:
    assert tool_format("{{ messages }}", marked) is None
    assert reasoning_format(HERMES, marked) is None
    assert said(parsed(Parser(None, None), ["<tool_call>{}"])) == ([], "<tool_call>{}", "")


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


DEEP: dict[str, Any] = {}
for _ in range(100_000):
    DEEP = {"a": DEEP}
BAD = [
    ("x", "tools"),
    ([NOW] * 129, "tools"),
    ([1], "tools[0]"),
    ([{"type": "retrieval"}], "tools[0].type"),
    ([{"type": "function"}], "tools[0].function"),
    ([NOW, NOW], "tools[1].function.name"),
    ([NOW, function(name="a b")], "tools[1].function.name"),
    ([function(name="x" * 129)], "tools[0].function.name"),
    ([function(name="f\n")], "tools[0].function.name"),
    ([function(description=1)], "tools[0].function.description"),
    ([function(strict="yes")], "tools[0].function.strict"),
    ([function(extra=1)], "tools[0].function"),
    ([function(parameters=[])], "tools[0].function.parameters"),
    ([function(parameters={"type": "string"})], "tools[0].function.parameters"),
    ([function(parameters=DEEP)], "tools[0].function.parameters"),
    ([function(parameters={"title": "x" * 200_000})], "tools[0].function.parameters"),
    ([function(parameters={"title": "\ud800"})], "tools[0].function.parameters"),
    ([function(parameters={"default": float("nan")})], "tools[0].function.parameters"),
    ([function(parameters={"properties": {"a": 1}})], "tools[0].function.parameters.properties"),
    ([function(parameters={"required": "a"})], "tools[0].function.parameters.required"),
]


@pytest.mark.parametrize(("tools", "param"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_tools_are_refused_by_place(tools: object, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_tools(tools)
    assert caught.value.param == param


def test_templates_get_arguments_as_they_read_them() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [call]}]
    for source in (
        "",
        "{{ tool_call.arguments | tojson }}",
        "{{ '' + (tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson) + '' }}",
        "{% for key in tool_call.arguments %}{{ key + '=' + tool_call.arguments[key] }}{% endfor %}",
    ):
        (_, decoded) = template_messages(messages, source)
        assert decoded["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    (_, text) = template_messages(messages, "{{ '```json' + tool['function']['arguments'] }}")
    assert text["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
    for bad in ("[1]", "{", 1, "{" * 100_000):
        wrong = {**call, "function": {"name": "f", "arguments": bad}}
        with pytest.raises(RequestError) as caught:
            template_messages([{"role": "assistant", "tool_calls": [wrong]}], "")
        assert caught.value.param == "messages[0].tool_calls[0].function.arguments"


def test_parameters_in_tags_get_the_types_of_the_schema(marked: Tokenizer) -> None:
    body = "<parameter=city>\n12\n</parameter>\n<parameter=days>\n12\n</parameter>"
    calls, _, _ = said(parsed(parser(XML, marked), [f"<function=get_weather>\n{body}\n</function>"]))
    assert calls == [("get_weather", {"city": "12", "days": 12})]


def test_large_numbers_keep_their_digits(marked: Tokenizer) -> None:
    text = '<tool_call>{"name": "now", "arguments": {"a": 1.10, "b": 12345678901234567890}}</tool_call>'
    fragments = [e.fragment for e in parsed(parser(HERMES, marked), [text]) if isinstance(e, CallArguments)]
    assert "".join(fragments) == '{"a": 1.10, "b": 12345678901234567890}'
