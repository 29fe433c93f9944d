"""Protects, on a real Ray: the whole API over replicas, the death of one under load, and what is refused."""

import asyncio
import json
import os
import re
import signal
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from tests.deploy.ray.local_cluster import LocalCluster
from tuneserve.deploy.ray import read_options, serve_config
from tuneserve.gateway import Limits, add_key

REPLICAS = 2
REPLICA = "ray::ServeReplica:tuneserve:engine"
WAIT = 60.0
REFUSED: dict[str, dict[str, Any]] = {
    "unseen": {"source": "/nowhere/model"},
    "gpus": {"source": "demo", "gpus": 1},
    "crowded": {"source": "demo", "min_replicas": 50, "max_replicas": 50},
    "unknown": {"source": "demo", "speed": "high"},
}
# Its engine is never ready.
LATE = {"source": "demo", "start_seconds": 0.05}


@dataclass(frozen=True)
class Running:
    cluster: LocalCluster
    url: str
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def metrics(self) -> dict[str, float]:
        """Return the engine's metrics, by their names without labels."""
        text = httpx.get(f"{self.url}/metrics", headers=self.headers, timeout=WAIT).text
        found = re.findall(
            r"^(vllm:num_\w+|vllm:prefix\w+|tuneserve_sequences_\w+)\{[^}]*\} (\S+)$", text, re.MULTILINE
        )
        return {name: float(value) for name, value in found}


@pytest.fixture(scope="module")
def running(demo_base: Path) -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="ray-") as name, socket.create_server(("127.0.0.1", 0)) as probe:
        directory = Path(name)
        port = probe.getsockname()[1]
        key = add_key(directory / "keys.toml", "test", Limits())
        args = {
            "source": str(demo_base), "name": "demo", "context": 1024, "max_running": 8, "verify": False,
            "min_replicas": REPLICAS, "max_replicas": REPLICAS, "api_keys": str(directory / "keys.toml"),
            "allowed_hosts": ["127.0.0.1"],
        }  # fmt: skip
        config = serve_config(read_options(args), host="127.0.0.1", port=port)
        [late] = serve_config(read_options(LATE), host="127.0.0.1", name="late")["applications"]
        config["applications"].append({**late, "route_prefix": "/late"})
        (directory / "refused.json").write_text(json.dumps(REFUSED))
        (directory / "serve.yaml").write_text(yaml.safe_dump(config))
        probe.close()
        cluster = LocalCluster(directory / "serve.yaml", directory)
        try:
            cluster.wait(_is_whole)
            yield Running(cluster, f"http://127.0.0.1:{port}", key)
        finally:
            left = cluster.end()
    assert not left


def _is_whole(status: dict[str, Any]) -> bool:
    one = status.get("tuneserve", {"status": "", "engines": 0})
    return bool(one["status"] == "RUNNING" and one["engines"] == REPLICAS)


def test_the_official_client_chats_and_strangers_are_kept_out(running: Running) -> None:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key=running.key, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["demo"]
        messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]
        whole = client.chat.completions.create(model="demo", messages=messages, temperature=0, max_tokens=12)
        stream = client.chat.completions.create(
            model="demo", messages=messages, temperature=0, max_tokens=12, stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole.choices[0].message.content
        with pytest.raises(openai.BadRequestError, match="top_p"):
            client.chat.completions.create(model="demo", messages=messages, top_p=7)
    assert httpx.get(f"{running.url}/v1/models").status_code == 401
    assert httpx.get(f"{running.url}/health", headers={"Host": "evil.example"}).status_code == 403


@pytest.mark.parametrize("victim", [(REPLICA,), ("tuneserve.native.server", REPLICA)])
def test_a_replica_dies_under_load_and_no_answer_changes(running: Running, victim: tuple[str, ...]) -> None:
    running.cluster.wait(_is_whole)
    undisturbed = asyncio.run(_burst(running, None))
    assert all(undisturbed)
    before = running.metrics()
    assert asyncio.run(_burst(running, victim)) == undisturbed
    after = running.metrics()
    went_on = sum(after[f"tuneserve_sequences_{name}_total"] - before[f"tuneserve_sequences_{name}_total"]
                  for name in ("retried", "resumed"))  # fmt: skip
    assert went_on >= 1
    assert after["tuneserve_sequences_broken_off_total"] == 0
    assert after["vllm:num_requests_running"] == after["vllm:num_requests_waiting"] == 0


async def _burst(running: Running, victim: tuple[str, ...] | None) -> list[str]:
    """Ask for more than the replicas run at once, kill one long before any has ended, and return the texts."""
    under_way = asyncio.Semaphore(0)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(headers=running.headers, timeout=WAIT, limits=limits) as client:
        async with asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
            asked = [group.create_task(_ask(client, running.url, index, under_way)) for index in range(20)]
            for _ in range(4):
                await under_way.acquire()
            if victim is not None:
                os.kill(running.cluster.processes(*victim)[0], signal.SIGKILL)
        return [each.result() for each in asked]


async def _ask(client: httpx.AsyncClient, url: str, index: int, under_way: asyncio.Semaphore) -> str:
    body: dict[str, Any] = {
        "model": "demo", "prompt": f"Story number {index}. Once upon a time there was", "stream": True,
        "max_tokens": 160, "min_tokens": 160, **({"seed": index} if index % 2 else {"temperature": 0}),
    }  # fmt: skip
    text, ended = "", False
    async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                ended = True
            elif line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event
                if not text:
                    under_way.release()
                text += event["choices"][0]["text"]
    assert ended
    return text


def test_a_client_that_leaves_frees_its_replica(running: Running) -> None:
    running.cluster.wait(_is_whole)
    body = {"model": "demo", "prompt": "On and on and on", "max_tokens": 900, "min_tokens": 900}
    with httpx.stream(
        "POST", f"{running.url}/v1/completions", json={**body, "stream": True}, headers=running.headers, timeout=WAIT
    ) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        next(lines)
        assert running.metrics()["vllm:num_requests_running"] == 1
    running.cluster.wait(lambda _: running.metrics()["vllm:num_requests_running"] == 0)


MESSAGES = {
    "unseen": r"the machine \S+ of the cluster does not see /nowhere/model; put it on a volume",
    "gpus": "each replica needs 1 GPUs and the cluster has none; add machines with GPUs",
    "crowded": r"the cluster has room for \d of 50 replicas, which need 1 CPUs each on one machine",
    "unknown": "the args of the application are not usable .*speed",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_started(running: Running, name: str) -> None:
    assert re.match(MESSAGES[name], running.cluster.refusals()[name])


def test_a_replica_that_is_never_ready_is_given_up_and_its_log_is_named(running: Running) -> None:
    status = running.cluster.wait(lambda each: each.get("late", {}).get("status") == "DEPLOY_FAILED")
    message = r"the native engine was not ready after 0.05 seconds on \S+; see (/\S+) there, or raise start_seconds"
    found = re.search(message, status["late"]["message"])
    assert found
    assert Path(found[1]).is_file()
