"""Protects: constrained output keeps to its grammar, ends when it may, and a bad grammar harms its request alone."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tuneserve.engines.contract import GenerationRequest, Grammar, SamplingParams
from tuneserve.engines.native import NativeEngine
from tuneserve.errors import RequestError
from tuneserve.native import LLM, EngineConfig, NativeCore
from tuneserve.sources import resolve

AGE = {"type": "integer", "minimum": 0, "maximum": 99}
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}, "age": AGE},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)
CHOICES = ['say "hi"', "a\\b", "line\nbreak", "é😀", "%json", "[x]*"]


@pytest.fixture(scope="module")
def llm(talker: Path) -> LLM:
    return LLM(talker, dtype="float32", max_running=4)


def constrained(kind: Any, text: str = "", **params: Any) -> SamplingParams:
    return SamplingParams(grammar=Grammar(kind=kind, text=text), **{"max_tokens": 200, "seed": 3, **params})


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_output_keeps_to_its_grammar(temperature: float, llm: LLM) -> None:
    # A random model would fill the object with blanks for ever.
    blanks = {llm.tokenizer.encode(blank, add_special_tokens=False)[0]: -100.0 for blank in " \n\t\r"}

    def texts(kind: str, text: str = "", **params: Any) -> list[str]:
        settings = constrained(kind, text, temperature=temperature, **params)
        completions = llm.generate([[1, seed, 50] for seed in range(3, 6)], settings)
        assert all(completion.finish_reason == "stop" for completion in completions)
        return [completion.text for completion in completions]

    for text in texts("json_schema", SCHEMA, logit_bias=blanks):
        value = json.loads(text)
        assert value.keys() == {"name", "age"}
        assert len(value["name"]) <= 5
        assert value["age"] <= 99
    assert all(re.fullmatch(r"[a-c]{3}\d{2}", text) for text in texts("regex", r"[a-c]{3}\d{2}"))
    assert set(texts("choice", json.dumps(CHOICES))) <= set(CHOICES)
    assert all(re.fullmatch(r"(ab)+!", text) for text in texts("lark", 'start: "ab"+ "!"', logit_bias={36: 8.0}))


def test_each_choice_can_be_made(llm: LLM) -> None:
    for choice in CHOICES:
        (completion,) = llm.generate(["x"], constrained("choice", json.dumps([choice]), temperature=0))
        assert (completion.text, completion.finish_reason) == (choice, "stop")


def test_a_json_object_is_one_as_far_as_it_goes(llm: LLM) -> None:
    (completion,) = llm.generate([[5]], constrained("json_object", max_tokens=20))
    assert completion.text.startswith("{")
    assert completion.finish_reason == "length" or isinstance(json.loads(completion.text), dict)


def test_end_tokens_come_only_where_the_grammar_accepts(llm: LLM) -> None:
    (end,) = llm.tokenizer.end_token_ids
    eager = {end: 100.0}
    (completion,) = llm.generate([[5]], constrained("regex", r"(xyz)+", logit_bias=eager))
    assert completion.text == "xyz"
    assert completion.token_ids[-1] == end
    assert completion.finish_reason == "stop"


def test_tokens_do_not_depend_on_the_batch(talker: Path) -> None:
    core = NativeCore(EngineConfig.of(resolve(talker), dtype="float32"))
    requests = [
        GenerationRequest(id="json", prompt_ids=[7, 8], params=constrained("json_schema", SCHEMA)),
        GenerationRequest(id="regex", prompt_ids=[9], params=constrained("regex", "[0-9]{12}")),
        GenerationRequest(id="free", prompt_ids=[9], params=SamplingParams(max_tokens=12, seed=1)),
    ]

    def run(some: list[GenerationRequest]) -> dict[str, list[int | None]]:
        produced: dict[str, list[int | None]] = {request.id: [] for request in some}
        for request in some:
            core.add(request)
        while not core.idle:
            for output in core.step():
                assert not output.failed
                produced[output.id].append(output.token)
        return produced

    together = run(requests)
    for request in requests:
        assert run([request])[request.id] == together[request.id]


BAD = [
    ("json_schema", '{"type":'),
    ("json_schema", "[1]"),
    ("json_schema", '{"type": "string", "minLength": 5, "maxLength": 2}'),
    ("json_schema", '{"allOf": [{"type": "string"}, {"type": "integer"}]}'),
    ("json_schema", "false"),
    ("json_schema", '{"$ref": "#"}'),
    ("json_schema", '{"$ref": "file:///etc/passwd"}'),
    ("json_schema", '{"type": "array", "items":' * 5000 + "{}" + "}" * 5000),
    ("regex", "(("),
    ("regex", r"[^\s\S]"),
    ("regex", "(?=a)b"),
    ("regex", "\ud800"),
    ("regex", "a" * 200_001),
    ("choice", "[]"),
    ("choice", '["a", 1]'),
    ("choice", "a"),
    ("lark", "start: nobody"),
    ("lark", ""),
]


@pytest.mark.parametrize(("kind", "text"), BAD, ids=lambda value: ascii(value)[:40])
def test_a_grammar_that_cannot_be_used_is_refused_alone(kind: str, text: str, llm: LLM) -> None:
    core = llm.core
    core.add(GenerationRequest(id="good", prompt_ids=[5], params=SamplingParams(temperature=0, max_tokens=3)))
    core.add(GenerationRequest(id="bad", prompt_ids=[5], params=constrained(kind, text)))
    outputs = []
    while not core.idle:
        outputs += core.step()
    refused = [output for output in outputs if output.id == "bad"]
    assert [bool(output.refused) for output in refused] == [True]
    assert len(outputs) - len(refused) == 3
    with pytest.raises(RequestError, match="grammar"):
        llm.generate([[5]], constrained(kind, text))


BOMBS = [
    ("regex", "((a{1000}){1000}){1000}"),
    ("regex", "(a|aa|aaa|.*b.*c.*d.*e){500}"),
    ("regex", "(.*a.{30}){20}"),
    ("json_schema", '{"type": "array", "minItems": 1000000000}'),
    ("lark", 'start: a a a a a a a\na: "x" | a a |'),
    # Chains of references, which llguidance follows by recursion.
    ("lark", "start: a0\n" + "\n".join(f'a{i}: "x" | a{i + 1}' for i in range(3000)) + '\na3000: "y"'),
    (
        "json_schema",
        json.dumps(
            {
                "$ref": "#/$defs/a0",
                "$defs": {
                    **{f"a{i}": {"properties": {"x": {"$ref": f"#/$defs/a{i + 1}"}}} for i in range(3000)},
                    "a3000": {},
                },
            }
        ),
    ),
]


@pytest.mark.parametrize(("kind", "text"), BOMBS, ids=lambda each: each[:40])
def test_a_bomb_is_followed_or_refused_while_others_go_on(kind: str, text: str, llm: LLM) -> None:
    core = llm.core
    core.add(GenerationRequest(id="bomb", prompt_ids=[5], params=constrained(kind, text, max_tokens=20)))
    core.add(GenerationRequest(id="good", prompt_ids=[5], params=SamplingParams(temperature=0, max_tokens=30)))
    outputs = []
    while not core.idle:
        outputs += core.step()
    assert sum(output.id == "good" and not output.failed for output in outputs) == 30
    last = [output for output in outputs if output.id == "bomb"][-1]
    assert last.finish_reason or last.failed or last.refused


def test_a_request_can_be_cancelled_while_its_grammar_is_compiled(llm: LLM) -> None:
    llm.core.add(GenerationRequest(id="x", prompt_ids=[5], params=constrained("json_schema", SCHEMA)))
    llm.core.cancel("x")
    assert llm.core.idle
    assert llm.core.step() == []


def test_bad_words_that_leave_nothing_fail_their_request(llm: LLM) -> None:
    token = llm.tokenizer.encode("a", add_special_tokens=False)[0]
    params = constrained("regex", "a", bad_words=((token,),))
    llm.core.add(GenerationRequest(id="x", prompt_ids=[5], params=params))
    outputs = []
    while not llm.core.idle:
        outputs += llm.core.step()
    assert [bool(output.failed and "leave no token" in output.failed) for output in outputs] == [True]


def test_without_a_tokenizer_they_are_refused(talker: Path) -> None:
    core = NativeCore(EngineConfig(model_dir=str(talker), dtype="float32"))
    core.add(GenerationRequest(id="x", prompt_ids=[5], params=constrained("json_object")))
    outputs = []
    while not core.idle:
        outputs += core.step()
    assert ["no tokenizer" in (output.refused or "") for output in outputs] == [True]


def test_grammars_and_their_refusals_cross_the_wire(talker: Path) -> None:
    async def scenario() -> None:
        engine = await NativeEngine.start(resolve(talker), dtype="float32")
        try:
            good = GenerationRequest(id="good", prompt_ids=[5], params=constrained("regex", "[0-9]{4}"))
            chunks = [chunk async for chunk in engine.generate(good)]
            assert chunks[-1].finish_reason == "stop"
            with pytest.raises(RequestError, match="cannot be used") as caught:
                bad = GenerationRequest(id="bad", prompt_ids=[5], params=constrained("regex", "(("))
                [chunk async for chunk in engine.generate(bad)]
            assert caught.value.param == "grammar"
        finally:
            await engine.close()

    asyncio.run(scenario())
