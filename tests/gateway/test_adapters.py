"""Protects: adapters of one engine are models of their own, and what an engine lacks is refused by name."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.gateway.conftest import FakeEngine, chat_body, make_served
from tuneserve.engines.contract import EngineInfo, SamplingParams
from tuneserve.gateway import ServedModel, create_app, without_lacking

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"


@dataclass
class LackingEngine(FakeEngine):
    """Cannot do two things."""

    @property
    def info(self) -> EngineInfo:
        return msgspec.structs.replace(super().info, lacks=("min_p", "seed", "grammar:lark"))


def _with_adapters(directory: Path) -> ServedModel:
    base = make_served(directory)
    other = make_served(directory)
    adapter = replace(other, name="tickets", engine=base.engine, adapter="tickets", template=None)
    return replace(base, adapters=(adapter,))


def _client(served: ServedModel) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(served)), base_url="http://testserver")


async def test_an_adapter_is_a_model_of_its_own(tokenizer_dir: Path) -> None:
    served = _with_adapters(tokenizer_dir)
    engine: Any = served.engine
    async with _client(served) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        assert [(model["id"], model.get("parent")) for model in listed] == [("tuned", None), ("tickets", "tuned")]
        assert (await client.get("/v1/models/tickets")).json() == listed[1]
        for model, adapter in (("tuned", None), ("tickets", "tickets")):
            body = {"model": model, "prompt": "Hi", "max_tokens": 2}
            answer = (await client.post("/v1/completions", json=body)).json()
            assert answer["model"] == model
            assert engine.requests[-1].adapter == adapter
        assert (await client.post(CHAT, json=chat_body())).status_code == 200
        # Its template is its own, and it has none.
        refused = (await client.post(CHAT, json=chat_body(model="tickets"))).json()
        assert refused["error"]["code"] == "no_chat_template"
        unknown = (await client.post(CHAT, json=chat_body(model="ticket"))).json()
        assert "this server has 'tuned', 'tickets'" in unknown["error"]["message"]


async def test_what_the_engine_lacks_is_refused_by_name(tokenizer_dir: Path) -> None:
    async with _client(make_served(tokenizer_dir, LackingEngine)) as client:
        for name, value in (("min_p", 0.1), ("seed", 1)):
            error = (await client.post(CHAT, json=chat_body(**{name: value}))).json()["error"]
            assert error["param"] == name
            assert error["code"] == "unsupported_parameter"
            assert "engine fake" in error["message"]
        allowed = await client.post(CHAT, json=chat_body(min_p=0, top_p=0.5))
        assert allowed.status_code == 200


def test_the_models_own_defaults_give_way_to_what_the_engine_lacks() -> None:
    defaults = SamplingParams(min_p=0.1, top_k=5)
    assert without_lacking(defaults, ("min_p", "grammar:lark")) == SamplingParams(top_k=5)
