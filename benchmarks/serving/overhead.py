"""What the gateway costs: its processor time beside the engine's at 64 streams, and what it adds to the first token.

    python benchmarks/serving/overhead.py [STREAMS]

The added latency is the time from opening a connection to the first token at the client, minus the time from the call
of the engine to its first token, for one request at a time, with a pause before each as there is at low load. Server
and client share a process here, so it contains what the client costs.
"""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator
from statistics import median

import uvicorn
from _client import stream
from _server import HOST, cpu_seconds, record, serving

from tuneserve.engines.contract import EngineInfo, EngineStats, GenerationRequest, TokenChunk
from tuneserve.engines.native import NativeEngine
from tuneserve.gateway import ServedModel, create_app, listen
from tuneserve.gateway._connection import Connection
from tuneserve.sources import resolve
from tuneserve.text import open_chat_template, open_tokenizer

TOKENS = 256
REQUESTS = 60
PAUSE_SECONDS = 0.05


def body(number: int, tokens: int) -> dict[str, object]:
    """Return the request of one stream."""
    return {
        "model": "demo",
        "messages": [{"role": "user", "content": f"Tell me a long story about the number {number}."}],
        "temperature": 0,
        "max_tokens": tokens,
    }


async def load(port: int, streams: int) -> None:
    """Run the streams to their end."""
    answers = await asyncio.gather(*(stream(HOST, port, body(number, TOKENS)) for number in range(streams)))
    assert all(answer.reason in ("stop", "length") for answer in answers)


def measure_processor_time(streams: int) -> None:
    """Measure both processes under load."""
    with serving("demo", "--max-running", str(streams)) as server:
        asyncio.run(load(server.port, 4))
        gateway, engine = cpu_seconds(server.gateway), cpu_seconds(server.engine)
        tokens, began = server.metrics()["vllm:generation_tokens_total"], time.perf_counter()
        asyncio.run(load(server.port, streams))
        seconds = time.perf_counter() - began
        gateway, engine = cpu_seconds(server.gateway) - gateway, cpu_seconds(server.engine) - engine
        tokens = server.metrics()["vllm:generation_tokens_total"] - tokens
    record(
        "overhead: processor time", streams=streams, tokens=int(tokens), seconds=round(seconds, 2),
        gateway_cpu_seconds=round(gateway, 2), engine_cpu_seconds=round(engine, 2),
        gateway_share=round(gateway / engine, 4), gateway_microseconds_per_token=round(gateway / tokens * 1e6, 1),
    )  # fmt: skip
    assert gateway <= 0.05 * engine


class Timed:
    """The engine, timed from the call to the first token."""

    def __init__(self, engine: NativeEngine) -> None:
        self._engine = engine
        self.first_seconds: list[float] = []
        self.ready = True

    @property
    def info(self) -> EngineInfo:
        """What is being served."""
        return self._engine.info

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """Continue one sequence."""
        began, is_first = time.perf_counter(), True
        async for chunk in self._engine.generate(request):
            if is_first:
                self.first_seconds.append(time.perf_counter() - began)
                is_first = False
            yield chunk

    async def stats(self) -> EngineStats:
        """Return the load."""
        return await self._engine.stats()

    async def close(self) -> None:
        """Stop it."""
        await self._engine.close()


async def measure_added_latency() -> None:
    """Measure one request at a time."""
    source = resolve("demo")
    engine = Timed(await NativeEngine.start(source))
    served = ServedModel("demo", open_tokenizer(source.model_dir), open_chat_template(source.model_dir), engine)
    config = uvicorn.Config(create_app(served), http=Connection, lifespan="off", log_config=None, log_level="error")
    server = uvicorn.Server(config)
    with listen(HOST, 0) as listener:
        serving_task = asyncio.create_task(server.serve(sockets=[listener]))
        answers = []
        for number in range(REQUESTS):
            await asyncio.sleep(PAUSE_SECONDS)
            answers.append(await stream(HOST, listener.getsockname()[1], body(number, 4)))
        server.should_exit = True
        await serving_task
    await engine.close()
    pairs = list(zip(answers, engine.first_seconds, strict=True))[10:]
    added = sorted(1000 * (answer.first_seconds - inside) for answer, inside in pairs)
    record(
        "overhead: added latency to the first token", requests=len(pairs),
        engine_milliseconds=round(1000 * median(inside for _, inside in pairs), 2),
        added_milliseconds_p10=round(added[len(added) // 10], 2), added_milliseconds_median=round(median(added), 2),
        added_milliseconds_p90=round(added[len(added) * 9 // 10], 2),
    )  # fmt: skip
    assert median(added) < 5


def main() -> None:
    """Measure and record."""
    asyncio.run(measure_added_latency())
    measure_processor_time(int(sys.argv[1]) if len(sys.argv) > 1 else 64)


if __name__ == "__main__":
    main()
