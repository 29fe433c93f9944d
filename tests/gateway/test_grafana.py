"""Protects: the board shows what the server measures: every metric and label that it queries is there."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.conftest import FakeEngine, chat_body
from tuneserve.gateway import Limits, ServedModel, Settings, add_key, create_app

BOARD = Path(__file__).parents[2] / "docs" / "grafana" / "tuneserve.json"
METRIC = re.compile(r"\b(?:vllm:|http_|tuneserve_|process_)\w+")


def _queries(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value[name] for name in ("expr", "definition") if name in value]
        return own + [each for item in value.values() for each in _queries(item)]
    return [each for item in value for each in _queries(item)] if isinstance(value, list) else []


@pytest.mark.anyio
async def test_every_metric_it_queries_exists(served: ServedModel, engine: FakeEngine, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.toml", "a", Limits(requests_per_minute=1))
    app = create_app(served, Settings(api_keys=tmp_path / "keys.toml"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        client.headers["x-api-key"] = key
        statuses = [(await client.post("/v1/chat/completions", json=chat_body())).status_code for _ in range(2)]
        assert statuses == [200, 429]
        text = (await client.get("/metrics")).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    labels = {sample.name: set(sample.labels) for sample in samples}
    queries = _queries(json.loads(BOARD.read_text()))
    assert len(queries) > 20
    for query in queries:
        for metric in METRIC.findall(query):
            assert metric in labels, query
            if f"{metric}{{model_name" in query or "label_values" in query:
                assert "model_name" in labels[metric]
        for by in re.findall(r"by \(([^)]*)\)", query):
            for label in by.split(", "):
                assert any(label in labels[metric] for metric in METRIC.findall(query)), query


@pytest.mark.anyio
async def test_vllms_names_are_its_own(client: httpx.AsyncClient) -> None:
    """The names and kinds as vLLM's documentation of its production metrics lists them."""
    await client.post("/v1/chat/completions", json=chat_body())
    text = (await client.get("/metrics")).text
    kinds = dict(re.findall(r"^# TYPE (vllm:\S+) (\w+)$", text, re.MULTILINE))
    assert {name: kind for name, kind in kinds.items() if not name.endswith("_created")} == {
        "vllm:num_requests_running": "gauge",
        "vllm:num_requests_waiting": "gauge",
        "vllm:kv_cache_usage_perc": "gauge",
        "vllm:prefix_cache_queries_total": "counter",
        "vllm:prefix_cache_hits_total": "counter",
        "vllm:prompt_tokens_total": "counter",
        "vllm:generation_tokens_total": "counter",
        "vllm:request_success_total": "counter",
        "vllm:request_prompt_tokens": "histogram",
        "vllm:request_generation_tokens": "histogram",
        "vllm:time_to_first_token_seconds": "histogram",
        "vllm:inter_token_latency_seconds": "histogram",
        "vllm:request_time_per_output_token_seconds": "histogram",
        "vllm:e2e_request_latency_seconds": "histogram",
    }
