"""Protects embeddings, tokens, and adapters that come and go while the server runs."""

import base64
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import END, START, FakeEngine, chat_body, make_served, write_tokenizer
from tuneserve.engines.contract import GenerationRequest, TokenChunk
from tuneserve.errors import InputError
from tuneserve.gateway import Limits, ServedModel, Settings, add_key, create_app
from tuneserve.gateway._app import application
from tuneserve.gateway._state import Gateway

pytestmark = pytest.mark.anyio


@dataclass
class HostingEngine(FakeEngine):
    """Embeds, and takes adapters unless told not to."""

    loaded: dict[str, Path] = field(default_factory=dict)
    embedded: list[tuple[list[int], str, str | None]] = field(default_factory=list)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """End as at the context's length where nothing else ends the script, as with ``ignore_eos``."""
        reason = None
        async for chunk in super().generate(request):
            reason = chunk.finish_reason
            yield chunk
        if reason is None:
            yield TokenChunk(token_ids=[], finish_reason="length")

    async def embed(self, prompt_ids: list[int], pooling: str, adapter: str | None) -> list[float]:
        self.embedded.append((prompt_ids, pooling, adapter))
        return [3.0 * len(prompt_ids), -4.0 * len(prompt_ids)]

    async def load_adapter(self, name: str, path: Path) -> None:
        if (path / "broken").exists():
            raise InputError("the adapter is of another base; train it on this one.")
        self.loaded[name] = path

    async def unload_adapter(self, name: str) -> None:
        del self.loaded[name]


@pytest.fixture
def hosting(tokenizer_dir: Path) -> ServedModel:
    return make_served(tokenizer_dir, HostingEngine)


@pytest.fixture
async def host(hosting: ServedModel, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    (tmp_path / "allowed" / "first").mkdir(parents=True)
    (tmp_path / "allowed" / "bad" / "broken").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "allowed" / "link").symlink_to(tmp_path / "secret")
    app = create_app(hosting, Settings(adapter_dirs=(tmp_path / "missing", tmp_path / "allowed")))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        yield client


@pytest.mark.parametrize("value", ["ab", ["ab"], [5, 6], [[5, 6]]])
async def test_an_embedding_has_unit_length(host: httpx.AsyncClient, value: Any) -> None:
    answer = (await host.post("/v1/embeddings", json={"model": "tuned", "input": value})).json()
    assert answer["data"] == [{"object": "embedding", "index": 0, "embedding": pytest.approx([0.6, -0.8])}]
    assert answer["usage"] == {"prompt_tokens": 2, "total_tokens": 2}


async def test_embeddings_as_base64_and_pooled_otherwise(host: httpx.AsyncClient, hosting: ServedModel) -> None:
    body = {"model": "tuned", "input": ["a", "bc"], "encoding_format": "base64", "pooling": "mean"}
    data = (await host.post("/v1/embeddings", json=body)).json()["data"]
    assert [each["index"] for each in data] == [0, 1]
    assert struct.unpack("<2f", base64.b64decode(data[0]["embedding"])) == pytest.approx((0.6, -0.8))
    assert isinstance(hosting.engine, HostingEngine)
    assert sorted((len(ids), pooling, name) for ids, pooling, name in hosting.engine.embedded) == [
        (1, "mean", None), (2, "mean", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [258]}, "input"),
        ({"input": [-1]}, "input[0]"),
        ({"input": "x" * 257}, "input"),
        ({"dimensions": 4}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"pooling": "max"}, "pooling"),
    ],
)
async def test_what_cannot_be_embedded_is_named(host: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    response = await host.post("/v1/embeddings", json={"model": "tuned", "input": "a", **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    longest = await host.post("/v1/embeddings", json={"model": "tuned", "input": "x" * 256})
    assert longest.status_code == 200


async def test_an_engine_without_embeddings_says_so(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/embeddings", json={"model": "tuned", "input": "a"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported_parameter")


async def test_texts_become_tokens_and_back(client: httpx.AsyncClient, served: ServedModel) -> None:
    body = {"prompt": f"né{END}", "return_token_strs": True}
    answer = (await client.post("/tokenize", json=body)).json()
    assert (answer["count"], answer["max_model_len"]) == (4, 256)
    assert answer["token_strs"][0] == "n"
    assert answer["token_strs"][-1] == END
    back = await client.post("/detokenize", json={"model": "tuned", "tokens": answer["tokens"]})
    assert back.json() == {"prompt": f"né{END}"}
    assert (await client.post("/detokenize", json={"tokens": []})).json() == {"prompt": ""}
    empty = (await client.post("/tokenize", json={"prompt": ""})).json()
    assert (empty["tokens"], empty["token_strs"]) == ([], None)


async def test_a_conversation_becomes_tokens_however_long(client: httpx.AsyncClient, served: ServedModel) -> None:
    body = {"messages": [{"role": "user", "content": "x" * 300}], "add_generation_prompt": False}
    answer = (await client.post("/tokenize", json=body)).json()
    text = served.tokenizer.decode(answer["tokens"], skip_special_tokens=False)
    assert text == f"{START}user\n{'x' * 300}{END}\n"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "a", "bananas": 1}, "bananas"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("/detokenize", {"tokens": [258]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [2**40]}, "tokens[0]"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
    ],
)  # fmt: skip
async def test_what_cannot_be_tokenized_is_named(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], param: str
) -> None:
    response = await client.post(path, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_an_adapter_comes_and_goes(host: httpx.AsyncClient, hosting: ServedModel, tmp_path: Path) -> None:
    for path in ("first", str(tmp_path / "allowed" / "first")):
        answer = await host.post("/v1/load_lora_adapter", json={"lora_name": "one", "lora_path": path})
        assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'one' added successfully.")
        models = (await host.get("/v1/models")).json()["data"]
        assert [(model["id"], model.get("parent")) for model in models] == [("tuned", None), ("one", "tuned")]
        assert isinstance(hosting.engine, HostingEngine)
        assert hosting.engine.loaded == {"one": tmp_path / "allowed" / "first"}
        assert (await host.post("/v1/chat/completions", json=chat_body(model="one"))).status_code == 200
        assert hosting.engine.requests[-1].adapter == "one"
        again = await host.post("/v1/load_lora_adapter", json={"lora_name": "one", "lora_path": path})
        assert (again.status_code, again.json()["error"]["param"]) == (400, "lora_name")
        answer = await host.post("/v1/unload_lora_adapter", json={"lora_name": "one"})
        assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'one' removed successfully.")
        assert not hosting.engine.loaded
        assert (await host.post("/v1/chat/completions", json=chat_body(model="one"))).status_code == 404
    assert (await host.post("/v1/unload_lora_adapter", json={"lora_name": "one"})).status_code == 404


async def test_an_adapter_brings_its_own_template(
    host: httpx.AsyncClient, hosting: ServedModel, tmp_path: Path
) -> None:
    write_tokenizer(tmp_path / "allowed" / "first", "{{ messages[0].content }}!")
    await host.post("/v1/load_lora_adapter", json={"lora_name": "one", "lora_path": "first"})
    assert (await host.post("/v1/chat/completions", json=chat_body(model="one"))).status_code == 200
    assert isinstance(hosting.engine, FakeEngine)
    assert hosting.tokenizer.decode(hosting.engine.prompt) == "Hi!"


async def test_an_adapters_template_alone_is_used_with_the_bases_tokens(
    host: httpx.AsyncClient, hosting: ServedModel, tmp_path: Path
) -> None:
    template = tmp_path / "allowed" / "first" / "chat_template.jinja"
    template.write_text("{{ messages[0].content }}{{ eos_token }}")
    await host.post("/v1/load_lora_adapter", json={"lora_name": "one", "lora_path": "first"})
    assert (await host.post("/v1/chat/completions", json=chat_body(model="one"))).status_code == 200
    assert isinstance(hosting.engine, FakeEngine)
    assert hosting.tokenizer.eos_token
    asked = hosting.tokenizer.decode(hosting.engine.prompt, skip_special_tokens=False)
    assert asked == f"Hi{hosting.tokenizer.eos_token}"


HOSTILE_PATHS = [
    "../secret", "link", "/", "/etc", "first/../../secret", "", "first\x00", "x" * 5000, "-rf", "nothing", "bad\n",
    "~", "first/../../../../../../etc",
]  # fmt: skip
HOSTILE_NAMES = [
    "../a", "a/b", "a\x00", "a\n", "-a", "", "x" * 10_000, ".hidden", "é", " a", "a b", "a%2e", "tuned",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE_PATHS)
async def test_a_hostile_path_loads_nothing(host: httpx.AsyncClient, hosting: ServedModel, path: str) -> None:
    answer = await host.post("/v1/load_lora_adapter", json={"lora_name": "one", "lora_path": path})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora_path")
    assert len(answer.text) < 500
    assert isinstance(hosting.engine, HostingEngine)
    assert not hosting.engine.loaded


@pytest.mark.parametrize("name", HOSTILE_NAMES)
async def test_a_hostile_name_loads_nothing(host: httpx.AsyncClient, hosting: ServedModel, name: str) -> None:
    answer = await host.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": "first"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora_name")
    assert isinstance(hosting.engine, HostingEngine)
    assert not hosting.engine.loaded


async def test_an_adapter_that_cannot_run_is_refused_with_the_reason(host: httpx.AsyncClient) -> None:
    answer = await host.post("/v1/load_lora_adapter", json={"lora_name": "one", "lora_path": "bad"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora_path")
    assert "another base" in answer.json()["error"]["message"]


async def test_without_a_directory_or_a_host_there_is_no_loading(
    client: httpx.AsyncClient, served: ServedModel, tmp_path: Path
) -> None:
    body = {"lora_name": "one", "lora_path": "first"}
    assert (await client.post("/v1/load_lora_adapter", json=body)).status_code == 403
    app = create_app(served, Settings(adapter_dirs=(tmp_path,)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as other:
        response = await other.post("/v1/load_lora_adapter", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported_parameter")


async def test_of_several_models_an_adapter_names_its_own(tokenizer_dir: Path, tmp_path: Path) -> None:
    first, second = (replace(make_served(tokenizer_dir, HostingEngine), name=name) for name in ("first", "second"))
    engine: Any = second.engine
    (tmp_path / "one").mkdir()
    gateway = Gateway(Settings(adapter_dirs=(tmp_path,)))
    gateway.open(first, second)
    transport = httpx.ASGITransport(application(gateway))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        for base in (None, "third", "one"):
            body = {"lora_name": "one", "lora_path": "one", "base_model_name": base}
            error = (await client.post("/v1/load_lora_adapter", json=body)).json()["error"]
            assert (error["param"], error["code"]) == ("base_model_name", "invalid_value")
            assert "'first', 'second'" in error["message"]
        body = {"lora_name": "one", "lora_path": "one", "base_model_name": "second"}
        assert (await client.post("/v1/load_lora_adapter", json=body)).status_code == 200
        listed = (await client.get("/v1/models")).json()["data"]
        assert [(model["id"], model.get("parent")) for model in listed] == [
            ("first", None), ("second", None), ("one", "second"),
        ]  # fmt: skip
        assert engine.loaded == {"one": tmp_path / "one"}
        assert (await client.post("/v1/chat/completions", json=chat_body(model="one"))).status_code == 200
        assert engine.requests[-1].adapter == "one"
        shown = (await client.get("/v1/tuneserve/models")).json()["data"][-1]
        assert [(step["kind"], step["name"]) for step in shown["lineage"]] == [("adapter", "one"), ("engine", "fake")]
        assert (await client.post("/v1/unload_lora_adapter", json={"lora_name": "one"})).status_code == 200
        assert not engine.loaded
        assert len((await client.get("/v1/models")).json()["data"]) == 2


async def test_with_keys_only_an_admins_loads_and_unloads(hosting: ServedModel, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    file = tmp_path / "keys.toml"
    alice, root = add_key(file, "alice", Limits()), add_key(file, "root", Limits(concurrent=2), admin=True)
    app = create_app(hosting, Settings(api_keys=file, adapter_dirs=(tmp_path,)))
    load = ("/v1/load_lora_adapter", {"lora_name": "one", "lora_path": "one"})
    unload = ("/v1/unload_lora_adapter", {"lora_name": "one"})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        for key, expected in ((alice, [403, 403]), (root, [200, 200])):
            headers = {"x-api-key": key}
            answers = [await client.post(path, json=body, headers=headers) for path, body in (load, unload)]
            assert [answer.status_code for answer in answers] == expected
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
            if key == alice:
                assert {answer.json()["error"]["code"] for answer in answers} == {"admin_required"}
