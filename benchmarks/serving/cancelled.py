"""Streams whose clients leave: memory, threads, file descriptors and cache blocks are back afterwards.

    python benchmarks/serving/cancelled.py [STREAMS]

Clients come 50 at a time and leave after a few tokens, some before the first. A first round warms up what is kept on
purpose (compiled code, the log's thread, buffers of the allocator).
"""

import asyncio
import random
import sys

from _client import Lost, events, open_request
from _server import HOST, POOL, Server, footprint, record, serving

AT_ONCE = 50


async def leave(port: int, number: int, draw: random.Random) -> None:
    """Ask for a long answer, take a few events of it, and hang up."""
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": f"Tell me a story about {number} ducks."}],
        "max_tokens": 400,
        "stream": True,
    }
    patience = draw.randint(0, 6)
    reader, writer = await open_request(HOST, port, body)
    try:
        if patience:
            seen = 0
            async for _ in events(reader):
                seen += 1
                if seen == patience:
                    break
    except (Lost, asyncio.IncompleteReadError):
        pass
    finally:
        writer.transport.abort() if number % 2 else writer.close()


async def round_of(port: int, streams: int) -> None:
    """Have so many clients come and leave."""
    draw = random.Random(7)
    for start in range(0, streams, AT_ONCE):
        await asyncio.gather(*(leave(port, number, draw) for number in range(start, start + AT_ONCE)))


def settled(server: Server) -> dict[str, dict[str, int]]:
    """Wait until no sequence is left and return what both processes hold."""
    while True:
        seen = server.metrics()
        if not seen["vllm:num_requests_running"] and not seen["vllm:num_requests_waiting"]:
            break
    assert seen["vllm:kv_cache_usage_perc"] == 0, "cache blocks were not given back"
    return {"gateway": footprint(server.gateway), "engine": footprint(server.engine)}


def main() -> None:
    """Measure and record."""
    streams = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with serving("demo") as server:
        asyncio.run(round_of(server.port, 400))
        before = settled(server)
        asyncio.run(round_of(server.port, streams))
        after = settled(server)
    record("cancelled", streams=streams, before=before, after=after, cache_usage_after=0.0)
    for name, kept in before.items():
        assert after[name]["threads"] <= kept["threads"] + POOL
        assert after[name]["fds"] <= kept["fds"]
        assert after[name]["rss_kib"] <= kept["rss_kib"] * 1.05 + 8192


if __name__ == "__main__":
    main()
