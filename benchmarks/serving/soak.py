"""Mixed load for a while: streams that finish, clients that leave, bad requests; nothing grows, nothing fails.

python benchmarks/serving/soak.py [MINUTES]
"""

import asyncio
import random
import sys
import time

from _client import Lost, get, open_request, stream
from _server import HOST, POOL, Server, footprint, record, serving

AT_ONCE = 24


async def worker(port: int, draw: random.Random, until: float, counts: dict[str, int]) -> None:
    """Send one request after the other."""
    while time.monotonic() < until:
        kind = draw.choices(("streamed", "left", "bad"), (6, 3, 1))[0]
        body = {
            "model": "demo",
            "messages": [{"role": "user", "content": f"Tell me about the number {draw.randrange(10**6)}."}],
            "max_tokens": draw.randint(1, 96),
            "temperature": draw.choice((0, 1)),
        }
        if kind == "streamed":
            answer = await stream(HOST, port, body)
            assert answer.reason is not None, answer
        elif kind == "left":
            _, writer = await open_request(HOST, port, {**body, "stream": True})
            await asyncio.sleep(draw.random() / 4)
            writer.transport.abort()
        else:
            try:
                await stream(HOST, port, {**body, "max_tokens": -1})
                raise AssertionError("a negative max_tokens was taken")
            except Lost as error:
                assert str(error) == "status 400"
        counts[kind] += 1


async def run(server: Server, seconds: float) -> tuple[dict[str, int], float]:
    """Run the load; return what was done, and how long the slowest /health took."""
    counts = {"streamed": 0, "left": 0, "bad": 0}
    until = time.monotonic() + seconds
    workers = [
        asyncio.create_task(worker(server.port, random.Random(number), until, counts)) for number in range(AT_ONCE)
    ]
    worst = 0.0
    while time.monotonic() < until:
        began = time.perf_counter()
        status, _ = await get(HOST, server.port, "/health")
        assert status == 200
        worst = max(worst, time.perf_counter() - began)
        await asyncio.sleep(0.5)
    await asyncio.gather(*workers)
    return counts, worst


def main() -> None:
    """Measure and record."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 20
    # A cache so small that it is full before measuring begins: memory of the prefix cache is touched as it fills.
    with serving("demo", "--context", "512", "--max-running", str(AT_ONCE)) as server:
        asyncio.run(run(server, min(120, 6 * minutes)))
        before = {"gateway": footprint(server.gateway), "engine": footprint(server.engine)}
        counts, worst = asyncio.run(run(server, 60 * minutes))
        while server.metrics()["vllm:num_requests_running"]:
            pass
        usage = server.metrics()["vllm:kv_cache_usage_perc"]
        after = {"gateway": footprint(server.gateway), "engine": footprint(server.engine)}
    record(
        "soak", minutes=minutes, at_once=AT_ONCE, requests=counts, health_seconds_worst=round(worst, 3),
        before=before, after=after, cache_usage_after=usage,
    )  # fmt: skip
    assert usage == 0
    assert worst < 1
    for name, kept in before.items():
        assert after[name]["threads"] <= kept["threads"] + POOL
        assert after[name]["fds"] <= kept["fds"] + AT_ONCE
        assert after[name]["rss_kib"] <= kept["rss_kib"] * 1.1 + 16384


if __name__ == "__main__":
    main()
