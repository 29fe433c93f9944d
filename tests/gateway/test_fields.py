"""Protects that each field of chat and plain completions does what it says."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import END, TEMPLATE, FakeEngine, chat_body, make_served, sse_events, write_tokenizer
from tuneserve.engines.contract import Grammar
from tuneserve.errors import RequestError
from tuneserve.gateway import ServedModel, Settings, create_app

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


async def _ok(client: httpx.AsyncClient, url: str, body: Any) -> dict[str, Any]:
    response = await client.post(url, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def test_n_samples_share_the_prompt_and_differ_in_their_seed(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    answer = await _ok(client, CHAT, chat_body(n=3, seed=5))
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [request.params.seed for request in engine.requests] == [5, 6, 7]
    assert len({tuple(request.prompt_ids) for request in engine.requests}) == 1
    assert answer["usage"]["prompt_tokens"] == len(engine.prompt)
    assert answer["usage"]["completion_tokens"] == 45
    await _ok(client, CHAT, chat_body(n=2, seed=2**63 - 1))
    assert [request.params.seed for request in engine.requests[3:]] == [2**63 - 1, -(2**63)]


async def test_n_samples_stream_apart(client: httpx.AsyncClient) -> None:
    events = sse_events((await client.post(CHAT, json=chat_body(n=2, stream=True))).text)[:-1]
    for index in (0, 1):
        choices = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in choices) == "Hello, wörld!"
        assert choices[0]["delta"]["role"] == "assistant"
        assert choices[-1]["finish_reason"] == "stop"


async def test_sampling_fields_reach_the_engine(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    body = chat_body(
        presence_penalty=0.5, frequency_penalty=-1, typical_p=0.9, logit_bias={"7": -100, "9": 3.5},
        bad_words=["ab"], ignore_eos=True, service_tier="priority", max_tokens=3,
    )  # fmt: skip
    answer = await _ok(client, CHAT, body)
    assert answer["service_tier"] == "priority"
    (request,) = engine.requests
    assert request.priority == -1
    params = request.params
    assert (params.presence_penalty, params.frequency_penalty, params.typical_p) == (0.5, -1, 0.9)
    assert params.logit_bias == {7: -100, 9: 3.5}
    assert params.stop_token_ids == ()
    ids = [served_ids(text, engine) for text in ("ab", " ab")]
    assert params.bad_words == tuple(ids)


def served_ids(text: str, engine: FakeEngine) -> tuple[int, ...]:
    """Return the ids of a text by the byte-level alphabet of the tests' tokenizer."""
    h = engine.answer[0]
    return tuple(h + ord(letter) - ord("H") if letter != " " else engine.answer[6] for letter in text)


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "json_object"}}, Grammar(kind="json_object")),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            Grammar(kind="json_schema", text=json.dumps(SCHEMA, separators=(",", ":"))),
        ),
        ({"guided_json": json.dumps(SCHEMA)}, Grammar(kind="json_schema", text=json.dumps(SCHEMA))),
        ({"guided_json": {}}, Grammar(kind="json_schema", text="{}")),
        ({"guided_regex": "a+"}, Grammar(kind="regex", text="a+")),
        ({"guided_choice": ["a", "é"]}, Grammar(kind="choice", text='["a","é"]')),
        ({"guided_grammar": 'start: "a"'}, Grammar(kind="lark", text='start: "a"')),
        ({"structured_outputs": {"json": {}}}, Grammar(kind="json_schema", text="{}")),
        ({"structured_outputs": {"regex": "a"}}, Grammar(kind="regex", text="a")),
        ({"structured_outputs": {"choice": ["b"]}}, Grammar(kind="choice", text='["b"]')),
        ({"structured_outputs": {"grammar": "start: /a/"}}, Grammar(kind="lark", text="start: /a/")),
        ({"structured_outputs": {"json_object": True}}, Grammar(kind="json_object")),
        ({"structured_outputs": {"json_object": False}}, None),
        ({"response_format": {"type": "text"}}, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
async def test_a_form_reaches_the_engine_as_a_grammar(
    client: httpx.AsyncClient, engine: FakeEngine, url: str, fields: dict[str, Any], grammar: Grammar | None
) -> None:
    await _ok(client, url, {**(chat_body() if url == CHAT else {"model": "tuned", "prompt": "a"}), **fields})
    assert engine.requests[0].params.grammar == grammar


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs.regex"),
        ({"guided_json": "[]"}, "guided_json"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": ""}, "guided_json"),
        ({"guided_grammar": 'root ::= "a"'}, "guided_grammar"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a", ""]}, "guided_choice[1]"),
        ({"guided_choice": ["a"] * 10_001}, "guided_choice"),
        ({"structured_outputs": {"whitespace": 1}}, "structured_outputs.whitespace"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"logit_bias": {"258": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"bad_words": [""]}, "bad_words[0]"),
        ({"service_tier": "gold"}, "service_tier"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"nonsense": 1}}, "chat_template_kwargs"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
    ],
)
async def test_what_cannot_be_honoured_is_named(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    response = await client.post(CHAT, json=chat_body(**fields))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param, response.text
    assert not engine.requests


async def test_a_schema_nested_too_deeply_is_refused(client: httpx.AsyncClient) -> None:
    schema: dict[str, Any] = {}
    for _ in range(100):
        schema = {"items": schema}
    response = await client.post(CHAT, json=chat_body(guided_json=schema))
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("guided_json")


async def test_a_grammar_that_the_engine_refuses_is_named_as_the_request_named_it(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.refuse = RequestError("the grammar cannot be used (too large); correct it.", "grammar")
    for stream in (False, True):
        response = await client.post(CHAT, json=chat_body(guided_regex="a", stream=stream))
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "guided_regex"


@pytest.mark.parametrize(
    ("lacks", "fields", "param"),
    [
        ("grammar:regex", {"guided_regex": "a"}, "guided_regex"),
        ("grammar", {"response_format": {"type": "json_object"}}, "response_format"),
        ("typical_p", {"typical_p": 0.5}, "typical_p"),
        ("logit_bias", {"logit_bias": {"1": 1}}, "logit_bias"),
        ("bad_words", {"bad_words": ["a"]}, "bad_words"),
        ("logprobs", {"logprobs": True}, "logprobs"),
        ("presence_penalty", {"presence_penalty": 1}, "presence_penalty"),
        ("prompt_logprobs", {"prompt": "a", "echo": True, "logprobs": 1}, "echo"),
    ],
)
async def test_what_an_engine_lacks_is_refused_by_name(
    client: httpx.AsyncClient, engine: FakeEngine, lacks: str, fields: dict[str, Any], param: str
) -> None:
    engine.lacks = (lacks,)
    completion = "prompt" in fields
    body = {"model": "tuned", **fields} if completion else chat_body(**fields)
    response = await client.post(COMPLETIONS if completion else CHAT, json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")
    assert "fake" in error["message"]


async def test_chat_logprobs(client: httpx.AsyncClient) -> None:
    answer = await _ok(client, CHAT, chat_body(logprobs=True, top_logprobs=3))
    content = answer["choices"][0]["logprobs"]["content"]
    assert bytes([byte for token in content for byte in token["bytes"]]).decode() == "Hello, wörld!"
    assert content[0]["token"] == "H"
    assert content[0]["logprob"] == -1.0
    assert [top["token"] for top in content[0]["top_logprobs"][:2]] == ["I", "H"]
    assert content[0]["top_logprobs"][2]["logprob"] == -9999.0
    assert content[8]["token"] == "\N{REPLACEMENT CHARACTER}"
    plain = await _ok(client, CHAT, chat_body(logprobs=True))
    assert all(token["top_logprobs"] == [] for token in plain["choices"][0]["logprobs"]["content"])
    assert (await _ok(client, CHAT, chat_body()))["choices"][0]["logprobs"] is None


async def test_streamed_logprobs_are_those_of_the_whole_answer(client: httpx.AsyncClient) -> None:
    body = chat_body(logprobs=True, top_logprobs=1)
    whole = (await _ok(client, CHAT, body))["choices"][0]["logprobs"]["content"]
    events = sse_events((await client.post(CHAT, json={**body, "stream": True})).text)[:-1]
    streamed = [event["choices"][0]["logprobs"] for event in events]
    assert [token for logprobs in streamed if logprobs for token in logprobs["content"]] == whole


async def test_what_a_stop_string_cuts_has_no_logprobs(client: httpx.AsyncClient) -> None:
    answer = await _ok(client, CHAT, chat_body(logprobs=True, stop="o, w"))
    assert [token["token"] for token in answer["choices"][0]["logprobs"]["content"]] == list("Hell")
    answer = await _ok(client, CHAT, chat_body(logprobs=True, stop="d!?"))
    assert len(answer["choices"][0]["logprobs"]["content"]) == 14


async def test_completion_logprobs_and_echo(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    body = {"model": "tuned", "prompt": "né", "echo": True, "logprobs": 2, "max_tokens": 2}
    choice = (await _ok(client, COMPLETIONS, body))["choices"][0]
    assert choice["text"] == "néHe"
    logprobs = choice["logprobs"]
    assert logprobs["text_offset"] == [0, 1, 1, 2, 3]
    assert logprobs["tokens"][0] == "n"
    assert logprobs["tokens"][3:] == ["H", "e"]
    assert logprobs["token_logprobs"] == [None, -1.0, -1.0, -1.0, -1.0]
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["top_logprobs"][3] == {"I": -0.5, "H": -1.0}
    assert engine.requests[0].params.prompt_logprobs == 2
    events = sse_events((await client.post(COMPLETIONS, json={**body, "stream": True})).text)[:-1]
    streamed = [event["choices"][0] for event in events]
    assert "".join(each["text"] for each in streamed) == "néHe"
    for name, values in logprobs.items():
        assert [value for each in streamed if each["logprobs"] for value in each["logprobs"][name]] == values


async def test_a_prompt_can_be_scored_without_continuing_it(client: httpx.AsyncClient) -> None:
    body = {"model": "tuned", "prompt": [5, 6, 7], "echo": True, "logprobs": 0, "max_tokens": 0}
    answer = await _ok(client, COMPLETIONS, {**body, "return_tokens_as_token_ids": True})
    choice = answer["choices"][0]
    assert choice["logprobs"]["tokens"] == ["token_id:5", "token_id:6", "token_id:7"]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -1.0]
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0
    assert all(math.isfinite(value) for top in choice["logprobs"]["top_logprobs"][1:] for value in top.values())


async def test_several_samples_of_several_prompts(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = await _ok(client, COMPLETIONS, {"model": "tuned", "prompt": ["a", "b"], "n": 2, "echo": True})
    assert [choice["text"][0] for choice in answer["choices"]] == ["a", "a", "b", "b"]
    assert answer["usage"]["prompt_tokens"] == 2


async def test_variables_of_the_template_are_set_and_effort_is_one(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, TEMPLATE + "{{ 'T' if enable_thinking else 'F' }}{{ reasoning_effort }}")
    served = make_served(tmp_path)
    engine: Any = served.engine
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(served)), base_url="http://x") as client:
        for fields, ending in (
            ({"reasoning_effort": "low"}, "Tlow"),
            ({"reasoning_effort": "none"}, "Fnone"),
            ({"chat_template_kwargs": {"enable_thinking": True, "mood": "M"}}, "MT"),
            ({"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}}, "Flow"),
        ):
            await _ok(client, CHAT, chat_body(**fields))
            assert served.tokenizer.decode(engine.prompt).endswith(ending)


async def test_a_template_that_knows_developers_gets_them(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, TEMPLATE + "{# developer #}")
    served = make_served(tmp_path)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(served)), base_url="http://x") as client:
        await _ok(client, CHAT, chat_body(messages=[{"role": "developer", "content": "x"}]))
    engine: Any = served.engine
    assert "developer\nx" + END in served.tokenizer.decode(engine.prompt, skip_special_tokens=False)


@pytest.mark.parametrize(
    "fields",
    [
        {"bananas": 1},
        {"stream": True, "stream_options": {"bananas": 1}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "bananas": 1}}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi", "bananas": {}}], "bananas": 2}]},
        {"logit_bias": None, "structured_outputs": {"bananas": [], "apples": 1}},
    ],
)
async def test_a_lenient_server_ignores_what_nobody_knows_and_nothing_else(
    served: ServedModel, client: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    assert (await client.post(CHAT, json=chat_body(**fields))).status_code == 400
    app = create_app(served, Settings(lenient=True))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as lenient:
        assert (await lenient.post(CHAT, json=chat_body(**fields))).status_code == 200
        refused = await lenient.post(CHAT, json=chat_body(**{**fields, "audio": {}}))
        assert refused.json()["error"]["param"] == "audio"
        refused = await lenient.post(CHAT, json=chat_body(**fields, n=0))
        assert refused.json()["error"]["param"] == "n"


async def test_an_adapter_without_a_template_has_completions_only(tokenizer_dir: Path) -> None:
    served = replace(make_served(tokenizer_dir), template=None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(served)), base_url="http://x") as client:
        assert (await client.post(CHAT, json=chat_body())).json()["error"]["code"] == "no_chat_template"
