"""Protects chat completions: the prompt that reaches the engine, and what comes back, whole and streamed."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import END, START, FakeEngine, chat_body, make_served, sse_events, write_tokenizer
from tuneserve.engines.contract import SamplingParams
from tuneserve.errors import RequestError
from tuneserve.gateway import ServedModel, create_app

pytestmark = pytest.mark.anyio
URL = "/v1/chat/completions"


async def test_an_answer_has_text_usage_and_reason(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    response = await client.post(URL, json=chat_body())
    assert response.status_code == 200
    answer = response.json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "tuned"
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "Hello, wörld!", "refusal": None}
    assert choice["finish_reason"] == "stop"
    prompt = len(engine.prompt)
    assert answer["usage"] == {
        "prompt_tokens": prompt, "completion_tokens": 15, "total_tokens": prompt + 15,
        "completion_tokens_details": {"reasoning_tokens": 0},
    }  # fmt: skip
    assert response.headers["x-request-id"].startswith("req_")


async def test_the_prompt_is_the_rendered_template(
    client: httpx.AsyncClient, engine: FakeEngine, served: ServedModel
) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "ok", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "tool", "content": "42", "tool_call_id": "x"},
    ]
    body = chat_body(messages=messages, chat_template_kwargs={"mood": "calm"})
    assert (await client.post(URL, json=body)).status_code == 200
    assert served.tokenizer.decode(engine.prompt, skip_special_tokens=False) == (
        f"{START}system\nBe brief.{END}\n{START}user\none\ntwo{END}\n{START}assistant\nok{END}\n"
        f"{START}tool\n42{END}\n{START}assistant\ncalm"
    )


@pytest.mark.parametrize(("text", "threads"), [("Hi", 0), ("Hi" * 1000, 1)])
async def test_a_short_prompt_waits_for_no_thread(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, text: str, threads: int
) -> None:
    engine.context_length = 4096
    threaded, to_thread = [], asyncio.to_thread

    async def noted(work: Any) -> Any:
        threaded.append(work)
        return await to_thread(work)

    monkeypatch.setattr("tuneserve.gateway._prompts.asyncio.to_thread", noted)
    assert (await client.post(URL, json=chat_body(text))).status_code == 200
    assert len(threaded) == threads
    many = [{"role": "user", "content": "x"}] * 300
    threaded.clear()
    await client.post(URL, json={**chat_body(), "messages": many})
    assert len(threaded) == 2, "rendering and encoding"


async def test_the_final_message_can_be_continued(
    client: httpx.AsyncClient, engine: FakeEngine, served: ServedModel
) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    await client.post(URL, json=chat_body(messages=messages, continue_final_message=True))
    assert served.tokenizer.decode(engine.prompt, skip_special_tokens=False).endswith(f"{START}assistant\nb")


async def test_both_prompt_endings_at_once_are_refused(client: httpx.AsyncClient) -> None:
    response = await client.post(URL, json=chat_body(continue_final_message=True, add_generation_prompt=True))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "add_generation_prompt"


async def test_a_stream_opens_with_the_role_and_ends_with_done(client: httpx.AsyncClient) -> None:
    response = await client.post(URL, json=chat_body(stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    events = sse_events(response.text)
    assert events.pop() == "[DONE]"
    assert len({event["id"] for event in events}) == 1
    choices = [event["choices"][0] for event in events]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "Hello, wörld!"
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert all("�" not in str(choice["delta"]) for choice in choices)


async def test_a_stream_reports_usage_when_asked(client: httpx.AsyncClient) -> None:
    body = chat_body(stream=True, stream_options={"include_usage": True})
    events = sse_events((await client.post(URL, json=body)).text)
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] == 15
    assert all(event["usage"] is None for event in events[:-2])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_cuts_the_text_and_cancels_the_sequence(
    client: httpx.AsyncClient, engine: FakeEngine, stream: bool
) -> None:
    body = chat_body(stop=["zz", "lo, w"], stream=stream, stream_options={"include_usage": True} if stream else None)
    response = await client.post(URL, json=body)
    events = sse_events(response.text)[:-1] if stream else [response.json()]
    choices = [event["choices"][0] for event in events if event["choices"]]
    kind = "delta" if stream else "message"
    text = "".join(choice[kind].get("content", "") for choice in choices)
    assert text == "Hel"
    assert choices[-1]["finish_reason"] == "stop"
    assert events[-1]["usage"]["completion_tokens"] == len("Hello, w")
    assert engine.cancelled == [engine.requests[0].id]


async def test_a_stop_string_waits_for_min_tokens(client: httpx.AsyncClient) -> None:
    answer = (await client.post(URL, json=chat_body(stop="l", min_tokens=4))).json()
    assert answer["choices"][0]["message"]["content"] == "Hello, wör"


async def test_half_a_stop_string_at_the_end_is_text(client: httpx.AsyncClient) -> None:
    answer = (await client.post(URL, json=chat_body(stop="ld!?"))).json()
    assert answer["choices"][0]["message"]["content"] == "Hello, wörld!"


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_the_token_limit_is_the_finish_reason(client: httpx.AsyncClient, field: str) -> None:
    answer = (await client.post(URL, json=chat_body(**{field: 4}))).json()
    assert answer["choices"][0]["message"]["content"] == "Hell"
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_sampling_reaches_the_engine(client: httpx.AsyncClient, engine: FakeEngine, served: ServedModel) -> None:
    fields: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1, "seed": 7, "min_tokens": 2,
        "max_tokens": 20,
    }  # fmt: skip
    await client.post(URL, json=chat_body(**fields, top_k=5, stop_token_ids=[3]))
    assert engine.requests[0].params == SamplingParams(
        **fields, top_k=5, stop_token_ids=tuple(sorted({3, *served.tokenizer.end_token_ids}))
    )
    await client.post(URL, json=chat_body(top_k=-1))
    assert engine.requests[1].params.top_k == 0
    assert engine.requests[1].params.max_tokens == engine.context_length - len(engine.prompt)


async def test_an_end_token_is_no_text_even_if_it_is_not_special(tmp_path: Path, served: ServedModel) -> None:
    exclamation = served.tokenizer.encode("!", add_special_tokens=False)
    write_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": exclamation}))
    app = create_app(make_served(tmp_path))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        answer = (await client.post(URL, json=chat_body())).json()
    assert answer["choices"][0]["message"]["content"] == "Hello, wörld"
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_requests_run_at_the_same_time(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.hold_after = 3
    tasks = [
        asyncio.create_task(client.post(URL, json=chat_body(f"{index}", stream=index % 2 == 0))) for index in range(6)
    ]
    await asyncio.to_thread(lambda: [engine.holding.acquire() for _ in tasks])
    assert len({request.id for request in engine.requests}) == 6
    engine.release()
    assert {response.status_code for response in await asyncio.gather(*tasks)} == {200}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_token_has_a_status(
    client: httpx.AsyncClient, engine: FakeEngine, stream: bool
) -> None:
    engine.fail_after = 0
    response = await client.post(URL, json=chat_body(stream=stream))
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_error"
    engine.refuse = RequestError("no such token.", "stop_token_ids")
    response = await client.post(URL, json=chat_body(stream=stream))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "stop_token_ids"


async def test_a_failure_in_mid_stream_is_an_event(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.fail_after = 3
    response = await client.post(URL, json=chat_body(stream=True))
    assert response.status_code == 200
    events = sse_events(response.text)
    assert events[-1]["error"]["type"] == "server_error"
    assert events[-1]["error"]["code"] == "engine_error"
    assert "fake" not in events[-1]["error"]["message"]


async def test_an_unexpected_failure_tells_nothing(
    client: httpx.AsyncClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.refuse = ValueError("a secret")
    response = await client.post(URL, json=chat_body())
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "The server failed on this request; its log says why."
    assert "Traceback" in caplog.text


async def test_a_model_without_template_is_refused(tmp_path: Path) -> None:
    served = make_served(write_tokenizer(tmp_path, template=None))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(served)), base_url="http://x") as client:
        response = await client.post(URL, json=chat_body())
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "no_chat_template"
