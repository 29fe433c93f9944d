"""Protects the sampling of requests that do not say: the model's own recommendation, else OpenAI's."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import FakeEngine, chat_body
from tuneserve.engines.contract import SamplingParams
from tuneserve.errors import InputError
from tuneserve.gateway import ServedModel, create_app, read_sampling_defaults

FILE = "generation_config.json"


def test_without_a_recommendation_it_is_openais(tmp_path: Path) -> None:
    assert read_sampling_defaults(tmp_path) == SamplingParams(temperature=1.0, top_p=1.0, top_k=0)
    (tmp_path / FILE).write_text('{"eos_token_id": 2, "max_length": 20, "temperature": null}')
    assert read_sampling_defaults(tmp_path) == SamplingParams()


def test_the_models_recommendation_is_read(tmp_path: Path) -> None:
    values: dict[str, Any] = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.05}
    (tmp_path / FILE).write_text(json.dumps({**values, "do_sample": True, "max_new_tokens": 5}))
    assert read_sampling_defaults(tmp_path) == SamplingParams(**values)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"temperature": "1"}', '{"temperature": true}', '{"top_p": 7}', '{"top_k": 1.5}',
             '{"temperature": NaN}', "\xff", "[" * 100_000],
)  # fmt: skip
def test_a_malformed_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"generation_config.json .*; correct or remove it[.]$"):
        read_sampling_defaults(tmp_path)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(InputError, match="not a regular file"):
        read_sampling_defaults(tmp_path)


@pytest.mark.anyio
async def test_an_end_that_the_model_does_not_have_stops_no_request(served: ServedModel, engine: FakeEngine) -> None:
    ends = served.tokenizer.end_token_ids
    beyond = ends | {served.engine.info.vocab_size}
    served = replace(served, tokenizer=replace(served.tokenizer, end_token_ids=beyond))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(served)), base_url="http://x") as client:
        assert (await client.post("/v1/chat/completions", json=chat_body())).status_code == 200
    assert engine.requests[0].params.stop_token_ids == tuple(sorted(ends))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, (0.6, 20)), ({"temperature": 0}, (0.0, 20)), ({"top_k": 0, "temperature": None}, (0.6, 0))],
)
async def test_a_request_overrides_the_recommendation(
    served: ServedModel, engine: FakeEngine, fields: dict[str, Any], expected: tuple[float, int]
) -> None:
    served = replace(served, defaults=SamplingParams(temperature=0.6, top_k=20))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(served)), base_url="http://x") as client:
        assert (await client.post("/v1/chat/completions", json=chat_body(**fields))).status_code == 200
    params = engine.requests[0].params
    assert (params.temperature, params.top_k) == expected
