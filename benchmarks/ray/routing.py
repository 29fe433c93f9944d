"""How much of what replicas are asked they have computed before, routed by prefix and at random.

``python benchmarks/ray/routing.py >> benchmarks/ray/routing.jsonl``

Conversations of several turns over a few shared beginnings are sent to replicas of the demo model on a local Ray, the
conversations side by side, the turns of each one after the other. What counts is the share of prompt tokens that the
replicas found in their caches, as they count it. "Best" is what one endless cache would find.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import httpx

sys.path.append(str(Path(__file__).parents[1]))
from circumstances import circumstances

BLOCK = 16
PORT = 8765
WORDS = [
    "the",
    "old",
    "harbour",
    "keeps",
    "its",
    "lights",
    "on",
    "for",
    "ships",
    "that",
    "come",
    "late",
    "in",
    "winter",
    "and",
    "leave",
    "before",
    "the",
    "ice",
]


@dataclass(frozen=True)
class Load:
    """``conversations`` of ``turns`` over ``beginnings``; lengths are in words, about as many tokens."""

    replicas: int = 4
    beginnings: int = 6
    conversations: int = 24
    turns: int = 4
    beginning_words: int = 120
    turn_words: int = 60
    answer_tokens: int = 8
    at_once: int = 8
    seed: int = 0


def conversations(load: Load) -> list[list[str]]:
    """Return the new text of each turn of each conversation, the first with its beginning."""
    random = Random(load.seed)

    def text(count: int) -> str:
        return " ".join(random.choice(WORDS) for _ in range(count)) + ". "

    shared = [text(load.beginning_words) for _ in range(load.beginnings)]
    return [
        [
            shared[index % load.beginnings] + text(load.turn_words),
            *(text(load.turn_words) for _ in range(load.turns - 1)),
        ]
        for index in range(load.conversations)
    ]


async def converse(client: httpx.AsyncClient, turns: list[str], load: Load, slots: asyncio.Semaphore) -> list[float]:
    """Hold one conversation; return the seconds to each answer."""
    prompt, seconds = "", []
    for turn in turns:
        prompt += turn
        body = {"model": "demo", "prompt": prompt, "max_tokens": load.answer_tokens, "temperature": 0}
        async with slots:
            started = time.perf_counter()
            response = await client.post("/v1/completions", json=body)
            seconds.append(time.perf_counter() - started)
        response.raise_for_status()
        prompt += response.json()["choices"][0]["text"]
    return seconds


async def measure(load: Load) -> dict[str, float]:
    """Send the load; return what the replicas found of it, and how long answers took."""
    slots = asyncio.Semaphore(load.at_once)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{PORT}", timeout=600) as client:
        before = await counted(client)
        answered = await asyncio.gather(*(converse(client, turns, load, slots) for turns in conversations(load)))
        after = await counted(client)
    queries, hits = (after[name] - before[name] for name in ("queries", "hits"))
    seconds = sorted(each for conversation in answered for each in conversation)
    return {
        "tokens": queries,
        "found": hits,
        "share": round(hits / queries, 4),
        "median_seconds": round(seconds[len(seconds) // 2], 3),
        "p95_seconds": round(seconds[int(len(seconds) * 0.95)], 3),
    }


async def counted(client: httpx.AsyncClient) -> dict[str, float]:
    """Return the tokens that were looked up in the caches and found there."""
    lines = (await client.get("/metrics")).text.splitlines()
    names = {name: f"vllm:prefix_cache_{name}_total" for name in ("queries", "hits")}
    return {
        name: sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(metric))
        for name, metric in names.items()
    }


def best(load: Load) -> float:
    """Return the share that one cache without end would find, in the words of the texts instead of their tokens."""
    seen: set[tuple[str, ...]] = set()
    asked = found = 0
    for turns in conversations(load):
        words: list[str] = []
        for turn in turns:
            words += turn.split()
            asked += len(words)
            for end in range(BLOCK, len(words), BLOCK):
                found += BLOCK * (tuple(words[:end]) in seen)
                seen.add(tuple(words[:end]))
    return round(found / asked, 4)


def run(load: Load, routing: str, blocks: int) -> dict[str, float]:
    """Start replicas on a Ray of their own, and measure."""
    import ray
    from ray import serve

    from tuneserve.deploy.ray import read_options
    from tuneserve.deploy.ray._app import build

    args = {
        "source": "demo", "context": 1024, "max_running": 8, "min_replicas": load.replicas, "verify": False,
        "max_replicas": load.replicas, "routing": routing, "prefix_blocks": blocks,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="ray-") as directory:
        ray.init(
            address="local", num_cpus=2 * load.replicas, object_store_memory=80 << 20, include_dashboard=False,
            log_to_driver=False, _temp_dir=directory,
        )  # fmt: skip
        try:
            serve.start(http_options={"port": PORT})
            serve.run(build(read_options(args)), name="tuneserve")
            return asyncio.run(measure(load))
        finally:
            serve.shutdown()
            ray.shutdown()


def main() -> None:
    """Measure each routing in a process of its own, and print a line of JSON for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs=2, metavar=("ROUTING", "BLOCKS"))
    chosen = parser.parse_args().one
    load = Load()
    if chosen:
        print(json.dumps(run(load, chosen[0], int(chosen[1]))))
        return
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    for routing, blocks in (("random", 4), ("prefix", 4), ("prefix", 8)):
        command = [sys.executable, __file__, "--one", routing, str(blocks)]
        output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        line = {
            **circumstances(), "routing": routing, "prefix_blocks": blocks if routing == "prefix" else None,
            **json.loads(output.splitlines()[-1]), "best": best(load), "load": asdict(load),
        }  # fmt: skip
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
