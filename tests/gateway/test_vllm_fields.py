"""Protects that the fields which clients of vLLM send mean here what they mean there."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from tests.gateway.conftest import END, START, TEMPLATE, FakeEngine, chat_body, make_served, sse_events, write_tokenizer
from tuneserve.gateway import ServedModel, create_app
from tuneserve.native._grammar import Grammars, forbidden

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
USAGE = {"include_usage": True, "continuous_usage_stats": True}


def body_for(url: str, /, **fields: Any) -> dict[str, Any]:
    """Return a body for either route."""
    return chat_body(**fields) if url == CHAT else {"model": "tuned", "prompt": "Hi", **fields}


async def ok(client: httpx.AsyncClient, url: str, /, **fields: Any) -> dict[str, Any]:
    """Return an answer."""
    response = await client.post(url, json=body_for(url, **fields))
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def streamed(client: httpx.AsyncClient, url: str, /, **fields: Any) -> list[Any]:
    """Return the events of a stream but the last, which is ``[DONE]``."""
    response = await client.post(url, json=body_for(url, stream=True, **fields))
    assert response.status_code == 200, response.text
    return sse_events(response.text)[:-1]


def said(choice: dict[str, Any]) -> str:
    """Return the text of a choice of either route, whole or streamed."""
    text = choice.get("text", choice.get("message", choice.get("delta", {})).get("content", ""))
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
async def test_each_chunk_tells_the_usage_so_far(client: httpx.AsyncClient, engine: FakeEngine, url: str) -> None:
    *events, last = await streamed(client, url, n=2, stream_options=USAGE)
    prompt = len(engine.prompt)
    for index in (0, 1):
        counts = [event["usage"] for event in events if event["choices"][0]["index"] == index]
        assert {count["prompt_tokens"] for count in counts} == {prompt}
        generated = [count["completion_tokens"] for count in counts]
        assert generated == sorted(generated)
        assert (generated[0], generated[-1]) == (1, 15)
        assert all(count["total_tokens"] == prompt + count["completion_tokens"] for count in counts)
    assert last["choices"] == []
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (prompt, 30)
    plain = await streamed(client, url, stream_options={"include_usage": True})
    assert all(event["usage"] is None for event in plain[:-1])


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
async def test_token_ids_of_a_whole_answer(client: httpx.AsyncClient, engine: FakeEngine, url: str) -> None:
    answer = await ok(client, url, return_token_ids=True, n=2)
    for choice in answer["choices"]:
        assert choice["token_ids"] == engine.answer
        assert (answer if url == CHAT else choice)["prompt_token_ids"] == engine.prompt
    stopped = await ok(client, url, return_token_ids=True, stop="o,")
    assert stopped["choices"][0]["token_ids"] == engine.answer[:6]
    plain = await ok(client, url)
    assert not {"token_ids", "prompt_token_ids"} & (plain.keys() | plain["choices"][0].keys())


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("fields", [{}, {"stop": "never"}, {"stop": "o,", "include_stop_str_in_output": True}])
async def test_streamed_token_ids_are_those_of_the_whole_answer(
    client: httpx.AsyncClient, url: str, fields: dict[str, Any]
) -> None:
    whole = await ok(client, url, return_token_ids=True, **fields)
    events = await streamed(client, url, return_token_ids=True, **fields)
    choices = [event["choices"][0] for event in events]
    assert [token for choice in choices for token in choice["token_ids"]] == whole["choices"][0]["token_ids"]
    assert "".join(said(choice) for choice in choices) == said(whole["choices"][0])
    holders = events if url == CHAT else choices
    whole_holder = whole if url == CHAT else whole["choices"][0]
    assert holders[0]["prompt_token_ids"] == whole_holder["prompt_token_ids"]
    assert not any("prompt_token_ids" in holder for holder in holders[1:])


async def test_a_prompt_that_is_only_scored_has_no_tokens_after_it(client: httpx.AsyncClient) -> None:
    fields: dict[str, Any] = {"echo": True, "max_tokens": 0, "return_token_ids": True}
    assert (await ok(client, COMPLETIONS, **fields))["choices"][0]["token_ids"] == []
    events = await streamed(client, COMPLETIONS, **fields)
    assert [event["choices"][0].get("token_ids") for event in events] == [[], []]
    assert "prompt_token_ids" in events[0]["choices"][0]


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
async def test_prompt_logprobs(client: httpx.AsyncClient, engine: FakeEngine, url: str) -> None:
    answer = await ok(client, url, prompt_logprobs=1, return_tokens_as_token_ids=True)
    found = (answer if url == CHAT else answer["choices"][0])["prompt_logprobs"]
    assert len(found) == len(engine.prompt)
    assert found[0] is None
    token, following = engine.prompt[1], (engine.prompt[1] + 1) % 256
    assert list(found[1]) == [str(following), str(token)]
    assert (found[1][str(following)]["logprob"], found[1][str(following)]["rank"]) == (-0.5, 1)
    # It is not among the one likeliest, and the engine does not tell its rank.
    assert (found[1][str(token)]["logprob"], found[1][str(token)]["rank"]) == (-1.0, None)
    if url == COMPLETIONS:
        assert found[1][str(token)]["decoded_token"] == "i"
    answer = await ok(client, url, prompt_logprobs=3)
    found = (answer if url == CHAT else answer["choices"][0])["prompt_logprobs"]
    assert [entry["rank"] for entry in found[1].values()] == [1, 2, 3]
    assert found[1]["0"]["logprob"] == -9999.0
    answer = await ok(client, url, prompt_logprobs=0)
    found = (answer if url == CHAT else answer["choices"][0])["prompt_logprobs"]
    assert [list(entry) for entry in found[1:]] == [[str(each)] for each in engine.prompt[1:]]


async def test_prompt_logprobs_and_echoed_logprobs_keep_their_counts(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    choice = (await ok(client, COMPLETIONS, echo=True, logprobs=1, prompt_logprobs=2))["choices"][0]
    assert engine.requests[0].params.prompt_logprobs == 2
    assert len(choice["logprobs"]["top_logprobs"][1]) == 2
    assert [entry["rank"] for entry in choice["prompt_logprobs"][1].values()] == [1, 2]
    choice = (await ok(client, COMPLETIONS, echo=True, logprobs=2, prompt_logprobs=0))["choices"][0]
    assert len(choice["logprobs"]["top_logprobs"][1]) == 2
    assert len(choice["prompt_logprobs"][1]) == 1


async def test_an_answer_has_a_million_log_probabilities_at_most(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.context_length = 10_000
    for fields, param in (
        ({"prompt_logprobs": 20}, "prompt_logprobs"),
        ({"logprobs": 20, "echo": True}, "echo"),
        ({"prompt_logprobs": 1, "n": 11}, "prompt_logprobs"),
    ):
        prompts = [[1] * 6_000] * 8
        response = await client.post(COMPLETIONS, json=body_for(COMPLETIONS, prompt=prompts, **fields))
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert not engine.requests
    monkeypatch.setattr("tuneserve.gateway.chat._work._MAX_SCORES", 2 * 2)
    await ok(client, COMPLETIONS, prompt_logprobs=1)
    long = await client.post(CHAT, json=chat_body(prompt_logprobs=1))
    assert (long.status_code, long.json()["error"]["param"]) == (400, "prompt_logprobs")


async def test_a_long_prompt_keeps_its_last_tokens(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await ok(client, CHAT)
    whole = engine.prompt
    for fields, kept in (
        ({"truncate_prompt_tokens": 7}, whole[-7:]),
        ({"truncate_prompt_tokens": 7, "truncation_side": "left"}, whole[-7:]),
        ({"truncate_prompt_tokens": 7, "truncation_side": "right"}, whole[:7]),
        ({"truncate_prompt_tokens": 200}, whole),
        ({"truncate_prompt_tokens": -1}, whole),
    ):
        answer = await ok(client, CHAT, **fields)
        assert engine.prompt == kept
        assert answer["usage"]["prompt_tokens"] == len(kept)
    tokens = list(range(100)) * 5
    await ok(client, COMPLETIONS, prompt=tokens, truncate_prompt_tokens=-1)
    assert engine.prompt == tokens[-240:]
    await ok(client, COMPLETIONS, prompt=tokens, truncate_prompt_tokens=-1, max_tokens=200)
    assert engine.prompt == tokens[-56:]
    long = [{"role": "user", "content": "x" * 300}]
    await ok(client, CHAT, messages=long, truncate_prompt_tokens=-1, max_completion_tokens=6)
    assert len(engine.prompt) == 250
    await ok(client, CHAT, messages=long, truncate_prompt_tokens=-1)
    assert len(engine.prompt) == 255


async def test_an_echo_is_of_the_tokens_that_are_kept(client: httpx.AsyncClient) -> None:
    answer = await ok(client, COMPLETIONS, prompt="abcdef", truncate_prompt_tokens=2, echo=True, max_tokens=1)
    assert said(answer["choices"][0]) == "efH"


async def test_special_tokens_are_added_to_a_prompt_where_wanted(tmp_path: Path) -> None:
    served = make_served(write_tokenizer(tmp_path))
    (start,) = served.tokenizer.encode(START, add_special_tokens=False)
    served.tokenizer.backend.post_processor = TemplateProcessing(
        single=f"{START} $A", pair=None, special_tokens=[(START, start)]
    )
    engine: Any = served.engine
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(served)), base_url="http://x") as client:
        for value, added in ((None, True), (True, True), (False, False)):
            await ok(client, COMPLETIONS, prompt="a", add_special_tokens=value)
            assert engine.prompt == ([start] if added else []) + engine.prompt[-1:]
        await ok(client, CHAT)
        plain = engine.prompt
        for value, added in ((None, False), (False, False), (True, True)):
            await ok(client, CHAT, add_special_tokens=value)
            assert engine.prompt == ([start] if added else []) + plain
            counted = await client.post("/tokenize", json=chat_body(add_special_tokens=value))
            assert counted.json()["tokens"] == engine.prompt


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
async def test_special_tokens_and_what_ends_an_output_are_shown_where_wanted(
    client: httpx.AsyncClient, engine: FakeEngine, served: ServedModel, url: str
) -> None:
    engine.answer = served.tokenizer.encode(f"a{START}b{END}", add_special_tokens=False)
    for fields, text in (
        ({}, "ab"),
        ({"skip_special_tokens": True}, "ab"),
        ({"skip_special_tokens": False}, f"a{START}b"),
        ({"include_stop_str_in_output": True}, "ab"),
        ({"skip_special_tokens": False, "include_stop_str_in_output": True}, f"a{START}b{END}"),
        ({"stop": "b"}, "a"),
        ({"stop": "b", "include_stop_str_in_output": False}, "a"),
        ({"stop": "b", "include_stop_str_in_output": True}, "ab"),
    ):
        answer = await ok(client, url, **fields)
        assert said(answer["choices"][0]) == text, fields
        assert answer["choices"][0]["finish_reason"] == "stop"
        events = await streamed(client, url, **fields)
        assert "".join(said(event["choices"][0]) for event in events) == text


async def test_a_stop_string_that_is_shown_has_logprobs(client: httpx.AsyncClient) -> None:
    answer = await ok(client, CHAT, logprobs=True, stop="o, w", include_stop_str_in_output=True)
    choice = answer["choices"][0]
    assert said(choice) == "Hello, w"
    assert [token["token"] for token in choice["logprobs"]["content"]] == list("Hello, w")


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
async def test_priority_is_the_place_among_those_that_wait(
    client: httpx.AsyncClient, engine: FakeEngine, url: str
) -> None:
    places: list[tuple[dict[str, Any], int]] = [
        ({"priority": -7}, -7),
        ({"priority": 3, "service_tier": "default"}, 3),
        ({"priority": 0, "service_tier": "flex"}, 1),
        ({"priority": None}, 0),
    ]
    for fields, place in places:
        await ok(client, url, **fields)
        assert engine.requests[-1].priority == place
    engine.prioritises = False
    for hint in ({"priority": 0}, {"service_tier": "flex"}):
        await ok(client, url, **hint)


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
async def test_only_allowed_tokens_follow(
    client: httpx.AsyncClient, engine: FakeEngine, tokenizer_dir: Path, url: str
) -> None:
    await ok(client, url, allowed_token_ids=[9, 5, 9, 257])
    grammar = engine.requests[-1].params.grammar
    assert grammar is not None
    state = Grammars(tokenizer_dir, tokenizer_dir, 258).start(grammar, []).result()
    for token in (5, 9, 5, 257):
        assert set(np.flatnonzero(~forbidden([(state, [])], 258)[0])) == {5, 9, 257}
        state.advance(token)
    await ok(client, url, allowed_token_ids=[5])
    grammar = engine.requests[-1].params.grammar
    assert grammar is not None
    state = Grammars(tokenizer_dir, tokenizer_dir, 258).start(grammar, []).result()
    for _ in range(engine.context_length):
        # The model's end token is not among them.
        assert set(np.flatnonzero(~forbidden([(state, [])], 258)[0])) == {5}
        state.advance(5)


async def test_thoughts_are_hidden_where_they_are_not_wanted(tmp_path: Path) -> None:
    served = make_served(write_tokenizer(tmp_path, TEMPLATE + "{# <think></think> #}"))
    assert served.reasoning_format is not None
    engine: Any = served.engine
    engine.answer = served.tokenizer.encode("<think>hm</think>yes" + END, add_special_tokens=False)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(served)), base_url="http://x") as client:
        shown = await ok(client, CHAT)
        assert shown["choices"][0]["message"]["reasoning_content"] == "hm"
        hidden = await ok(client, CHAT, include_reasoning=False)
        assert "reasoning_content" not in hidden["choices"][0]["message"]
        assert said(hidden["choices"][0]) == "yes"
        assert hidden["usage"] == shown["usage"]
        events = await streamed(client, CHAT, include_reasoning=False)
        assert not any("reasoning_content" in event["choices"][0]["delta"] for event in events)
        assert "".join(said(event["choices"][0]) for event in events) == "yes"
        for field in ("logprobs", "return_token_ids"):
            response = await client.post(CHAT, json=chat_body(include_reasoning=False, **{field: True}))
            assert response.json()["error"]["param"] == field
