"""Protects that what clients of vLLM send and is not honoured is refused by name, or asks for nothing."""

from typing import Any

import httpx
import pytest

from tests.gateway.conftest import FakeEngine, chat_body
from tests.gateway.test_vllm_fields import CHAT, COMPLETIONS, body_for, ok

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
async def test_values_that_ask_for_nothing_are_taken(client: httpx.AsyncClient, url: str) -> None:
    neutral: dict[str, Any] = {
        "detokenize": True, "spaces_between_special_tokens": True, "use_beam_search": False, "length_penalty": 1.0,
        "early_stopping": False, "best_of": 1, "stream_interval": 1, "vllm_xargs": {}, "logits_processors": None,
        "kv_transfer_params": None, "cache_salt": None, "request_id": None, "allowed_token_ids": None,
        "prompt_logprobs": None, "return_token_ids": False, "truncate_prompt_tokens": None, "priority": 0,
        "skip_special_tokens": True, "include_stop_str_in_output": False, "thinking_token_budget": None,
    }  # fmt: skip
    own: dict[str, Any] = {"prompt_embeds": None}
    if url == CHAT:
        own = {"documents": [], "chat_template": None, "mm_processor_kwargs": None, "include_reasoning": True}
    plain, asked = await ok(client, url), await ok(client, url, **neutral, **own)
    assert plain["choices"] == asked["choices"]
    await ok(client, url, length_penalty=1)


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": True}, "prompt_logprobs"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 2**31}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 256}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 57, "max_tokens": 200}, "truncate_prompt_tokens"),
        ({"truncation_side": "middle"}, "truncation_side"),
        ({"priority": 2**63}, "priority"),
        ({"priority": 1, "service_tier": "priority"}, "priority"),
        ({"return_token_ids": 1}, "return_token_ids"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"length_penalty": 0.5}, "length_penalty"),
        ({"detokenize": False}, "detokenize"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [258]}, "allowed_token_ids"),
        ({"allowed_token_ids": [1], "guided_regex": "a"}, "allowed_token_ids"),
        ({"cache_salt": "x"}, "cache_salt"),
        ({"request_id": "x"}, "request_id"),
        ({"logits_processors": ["x"]}, "logits_processors"),
    ],
)  # fmt: skip
async def test_what_is_not_honoured_is_named(
    client: httpx.AsyncClient, engine: FakeEngine, url: str, fields: dict[str, Any], param: str
) -> None:
    response = await client.post(url, json=body_for(url, **fields))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param, error
    assert f"'{param}'" in error["message"]
    assert not engine.requests


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
async def test_what_an_engine_lacks_is_refused_by_name(client: httpx.AsyncClient, engine: FakeEngine, url: str) -> None:
    engine.lacks, engine.prioritises = ("prompt_logprobs", "grammar:lark"), False
    for fields in ({"prompt_logprobs": 0}, {"priority": -1}, {"allowed_token_ids": [1]}):
        response = await client.post(url, json=body_for(url, **fields))
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (400, *fields, "unsupported_parameter")
        assert "fake" in error["message"]


async def test_a_template_from_a_request_is_refused(client: httpx.AsyncClient) -> None:
    for fields in ({"chat_template": "{{ 1 }}"}, {"documents": [{"text": "x"}]}, {"mm_processor_kwargs": {"a": 1}}):
        response = await client.post(CHAT, json=chat_body(**fields))
        assert (response.status_code, response.json()["error"]["param"]) == (400, *fields)
