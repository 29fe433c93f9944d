"""Protects: grammars of calls take what each format writes and nothing else, and make random weights call validly."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Backend

from tests.text.tool_samples import (
    GRANITE,
    HARMONY,
    HERMES,
    LLAMA,
    LLAMA4,
    MAGISTRAL,
    MISTRAL,
    MISTRAL_ID,
    MISTRAL_NAMED,
    NOW,
    PYTHONIC,
    QWEN3,
    SAMPLES,
    SPECIALS,
    WEATHER,
    XML,
)
from tuneserve.engines.contract import Grammar, SamplingParams
from tuneserve.errors import RequestError
from tuneserve.native import LLM
from tuneserve.native._grammar import Grammars
from tuneserve.text import Detokenizer, Tokenizer
from tuneserve.text.tools import (
    CallArguments,
    CallStarted,
    Content,
    Parser,
    check_tools,
    grammar,
    reasoning_format,
    tool_format,
    visible_ids,
)

TOOLS = check_tools([WEATHER, NOW])
TEMPLATES = sorted({sample.template for sample in SAMPLES})
SIZE = 300 + len(SPECIALS)
# Strings in tags are not bounded, so random weights would not end one.
SHORT = copy.deepcopy(WEATHER)
SHORT["function"]["parameters"]["properties"]["city"] = {"enum": ["Paris", "Rome"]}
SHORT_TOOLS = check_tools([SHORT, NOW])
_OBJECT = '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}'
_XML = "<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
_ARGUMENTS = '{"city": "Paris", "days": 3}'
WRITTEN = [
    (HERMES, f"<tool_call>\n{_OBJECT}\n</tool_call>"),
    (XML, f"<tool_call>\n<function=get_weather>\n{_XML}</function>\n</tool_call>"),
    (LLAMA, _OBJECT.replace("arguments", "parameters")),
    (PYTHONIC, '[get_weather(city="Paris", days=3)]'),
    (LLAMA4, '<|python_start|>[get_weather(city="Paris", days=3, exact=true)]<|python_end|>'),
    (MISTRAL, f"[TOOL_CALLS][{_OBJECT}]"),
    (MISTRAL_NAMED, f"[TOOL_CALLS]get_weather[ARGS]{_ARGUMENTS}"),
    (MISTRAL_ID, f"[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{_ARGUMENTS}"),
    (MAGISTRAL, f"[THINK]Hm.[/THINK][TOOL_CALLS]get_weather[ARGS]{_ARGUMENTS}"),
    (GRANITE, f"<|tool_call|>[{_OBJECT}]"),
    (HARMONY, f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{_ARGUMENTS}"),
    (
        HARMONY,
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
        f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{_ARGUMENTS}",
    ),
]


@pytest.fixture(scope="module")
def caller(
    write_model: Callable[..., Path],
    write_tokenizer: Callable[[Path, int], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> LLM:
    """Return a tiny random model that has the markers as special tokens."""
    directory = tmp_path_factory.mktemp("models") / "caller"
    write_model(directory, dtype=torch.float32, vocab_size=SIZE, max_position_embeddings=512)
    write_tokenizer(directory, 300)
    backend = Backend.from_file(str(directory / "tokenizer.json"))
    backend.add_special_tokens(list(SPECIALS))
    backend.save(str(directory / "tokenizer.json"))
    return LLM(directory, dtype="float32", max_running=4)


@pytest.fixture(scope="module")
def grammars(caller: LLM, tmp_path_factory: pytest.TempPathFactory) -> Grammars:
    directory = tmp_path_factory.mktemp("tokenizer")
    caller.tokenizer.backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    return Grammars(directory, directory, SIZE)


def made(template: str, tokenizer: Tokenizer, choice: str, parallel: bool = True, prompt: str = "") -> str:
    form, thoughts = tool_format(template, tokenizer), reasoning_format(template, tokenizer)
    text = grammar(form, TOOLS, choice, parallel, thoughts, prompt)
    assert text is not None
    return text


def accepts(grammars: Grammars, text: str, tokenizer: Tokenizer, output: str) -> bool:
    """Whether the whole of ``output``, and then its end, keeps to the grammar."""
    state = grammars.start(Grammar(kind="lark", text=text), []).result()
    ids = tokenizer.encode(output, add_special_tokens=False)
    if state.allowed(ids) < len(ids):
        return False
    for index in ids:
        state.advance(index)
    return state.ended or state.matcher.is_accepting()


@pytest.mark.parametrize(("template", "output"), WRITTEN, ids=ascii)
def test_grammars_take_what_models_write_and_nothing_else(
    template: str, output: str, caller: LLM, grammars: Grammars
) -> None:
    tokenizer = caller.tokenizer
    text = made(template, tokenizer, "required")
    assert accepts(grammars, text, tokenizer, output)
    assert said(template, tokenizer, output) == [("get_weather", json.loads(_ARGUMENTS))] or template == LLAMA4
    assert not accepts(grammars, text, tokenizer, "The weather is fine.")
    assert not accepts(grammars, text, tokenizer, output[:-1] if output[-1] in "]}" else output + "x")
    for right, wrong in (("get_weather", "get_whether"), ("3", "33"), ("days", "date")):
        assert not accepts(grammars, text, tokenizer, output.replace(right, wrong))
    assert not accepts(grammars, made(template, tokenizer, "now"), tokenizer, output)


@pytest.mark.parametrize("template", TEMPLATES, ids=ascii)
@pytest.mark.parametrize("choice", ["required", "get_weather", "now"])
def test_random_weights_make_valid_calls(template: str, choice: str, caller: LLM) -> None:
    tokenizer = caller.tokenizer
    form, thoughts = tool_format(template, tokenizer), reasoning_format(template, tokenizer)
    # Thoughts of random weights would have no end.
    prompt = {QWEN3: "<think></think>", MAGISTRAL: "[THINK][/THINK]"}.get(template, "")
    tools = SHORT_TOOLS if template == XML else TOOLS
    text = grammar(form, tools, choice, False, thoughts, prompt)
    assert text is not None
    if template == HARMONY:
        text = text.replace("thoughts? call", "call")
    (end,) = tokenizer.end_token_ids
    params = SamplingParams(grammar=Grammar(kind="lark", text=text), max_tokens=400, seed=5, logit_bias={end: 5})
    for completion in caller.generate([[5, seed] for seed in (6, 7)], params):
        assert completion.finish_reason == "stop"
        detokenizer = Detokenizer(tokenizer, visible_ids(form, thoughts))
        output = detokenizer.push(completion.token_ids) + detokenizer.finish()
        ((name, arguments),) = said(template, tokenizer, output, prompt)
        assert name == choice or choice == "required"
        if name == "get_weather":
            assert {"city", "days"} <= arguments.keys() <= {"city", "days", "unit", "exact"}
            assert isinstance(arguments["city"], str)
            assert 0 <= arguments["days"] <= 9
            assert arguments.get("unit", "c") in ("c", "f")
            assert isinstance(arguments.get("exact", True), bool)


def said(template: str, tokenizer: Tokenizer, output: str, prompt: str = "") -> list[tuple[str, Any]]:
    """Return the calls in ``output``, which has no content beside them."""
    parser = Parser(tool_format(template, tokenizer), reasoning_format(template, tokenizer), TOOLS, prompt)
    events = parser.push(output) + parser.finish()
    assert not any(isinstance(event, Content) for event in events)
    names = [event.name for event in events if isinstance(event, CallStarted)]
    return list(zip(names, [json.loads(e.fragment) for e in events if isinstance(e, CallArguments)], strict=True))


def test_thoughts_may_come_before_a_call_that_is_required(caller: LLM, grammars: Grammars) -> None:
    tokenizer = caller.tokenizer
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    free = made(QWEN3, tokenizer, "now")
    assert accepts(grammars, free, tokenizer, f"<think>\nHm.\n</think>\n\n{call}")
    assert accepts(grammars, free, tokenizer, call)
    assert not accepts(grammars, free, tokenizer, f"<think>\nHm.\n</think>\n\nNo. {call}")
    begun = made(QWEN3, tokenizer, "now", prompt="<think>\n")
    assert accepts(grammars, begun, tokenizer, f"Hm.\n</think>\n\n{call}")
    ended = made(QWEN3, tokenizer, "now", prompt="<think>\n\n</think>\n\n")
    assert accepts(grammars, ended, tokenizer, call)
    assert not accepts(grammars, ended, tokenizer, f"<think>\n</think>\n\n{call}")


def test_several_calls_come_only_where_they_may(caller: LLM, grammars: Grammars) -> None:
    tokenizer = caller.tokenizer
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    for parallel in (True, False):
        text = made(HERMES, tokenizer, "required", parallel)
        assert accepts(grammars, text, tokenizer, f"{call}\n{call}") is parallel


def test_a_choice_that_cannot_be_made_is_refused(caller: LLM) -> None:
    form = tool_format(HERMES, caller.tokenizer)
    for given, tools, choice in ((None, TOOLS, "required"), (form, [], "required"), (form, TOOLS, "nobody")):
        with pytest.raises(RequestError) as caught:
            grammar(given, tools, choice, True)
        assert caught.value.param == "tool_choice"
    assert grammar(form, TOOLS, "auto", True) is None


@pytest.mark.parametrize("template", [XML, PYTHONIC])
@pytest.mark.parametrize("schema", [{"properties": {"a b": {}}}, {"properties": {}, "required": ["a"]}])
def test_parameters_that_cannot_be_enforced_are_refused(template: str, schema: Any, caller: LLM) -> None:
    tools = check_tools([{"type": "function", "function": {"name": "f", "parameters": schema}}])
    with pytest.raises(RequestError) as caught:
        grammar(tool_format(template, caller.tokenizer), tools, "required", True)
    assert caught.value.param == "tools"


def test_shared_schemas_are_found(caller: LLM, grammars: Grammars) -> None:
    schema = {"properties": {"a": {"$ref": "#/$defs/n"}}, "required": ["a"], "$defs": {"n": {"type": "integer"}}}
    tools = check_tools([{"type": "function", "function": {"name": "f", "parameters": schema}}])
    for template, right in (
        (HERMES, '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'),
        (PYTHONIC, "[f(a=1)]"),
    ):
        text = grammar(tool_format(template, caller.tokenizer), tools, "f", True)
        assert text is not None
        assert accepts(grammars, text, caller.tokenizer, right)
        assert not accepts(grammars, text, caller.tokenizer, right.replace("1", '"1"'))
