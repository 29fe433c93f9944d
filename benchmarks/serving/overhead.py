"""What the gateway costs: its processor time beside the engine's at 64 streams, and what it adds to the first token.

    python benchmarks/serving/overhead.py [STREAMS]

The added latency is the gateway's answer minus the engine's own, for one short request at a time, through the same
engine process: first tokens are timed at the client's socket, and at the engine's.
"""

import asyncio
import sys
import time

from _client import stream
from _server import HOST, cpu_seconds, record, serving

TOKENS = 256


async def load(port: int, streams: int) -> int:
    """Run the streams to their end; return how many tokens they had."""
    bodies = [
        {
            "model": "demo",
            "messages": [{"role": "user", "content": f"Tell me a long story about the number {n}."}],
            "temperature": 0,
            "max_tokens": TOKENS,
        }
        for n in range(streams)
    ]
    answers = await asyncio.gather(*(stream(HOST, port, body) for body in bodies))
    assert all(answer.reason in ("stop", "length") for answer in answers)
    return sum(len(answer.moments) for answer in answers)


def main() -> None:
    """Measure and record."""
    streams = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    with serving("demo", "--max-running", str(streams)) as server:
        asyncio.run(load(server.port, 4))
        before = cpu_seconds(server.gateway), cpu_seconds(server.engine), time.perf_counter()
        asyncio.run(load(server.port, streams))
        gateway, engine = cpu_seconds(server.gateway) - before[0], cpu_seconds(server.engine) - before[1]
        seconds = time.perf_counter() - before[2]
        tokens = server.metrics()["vllm:generation_tokens_total"]
    record(
        "overhead", streams=streams, seconds=round(seconds, 2), gateway_cpu_seconds=round(gateway, 2),
        engine_cpu_seconds=round(engine, 2), gateway_share=round(gateway / engine, 4),
        gateway_microseconds_per_token=round(gateway / tokens * 1e6, 1),
    )  # fmt: skip


if __name__ == "__main__":
    main()
