"""What is lost, and for how long, when something breaks under load.

    python benchmarks/serving/faults.py

``kill -9`` of the engine: every running stream is told so in its own form, the engine is back, the next request works.
SIGTERM: every running stream is finished, then the server exits with 0. Slow readers: they hold up nobody else.
A full disk for the log: nobody notices, except the metric that counts the lines.
"""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable

from _client import Answer, Lost, get, open_request, stream
from _server import HOST, Server, record, serving

STREAMS = 32


def body(number: int, tokens: int = 128) -> dict[str, object]:
    """Return a request."""
    return {
        "model": "demo",
        "messages": [{"role": "user", "content": f"Tell me a long story about the number {number}."}],
        "temperature": 0,
        "max_tokens": tokens,
    }


async def outcome(answer: Awaitable[Answer]) -> str:
    """Say what became of one stream."""
    try:
        got = await answer
    except Lost as error:
        return f"refused: {error}"
    except OSError:
        return "connection broken"
    return "finished" if got.error is None else f"told: {got.error['code']}"


def counted(outcomes: list[str]) -> dict[str, int]:
    """Return how often each outcome was."""
    return {each: outcomes.count(each) for each in sorted(set(outcomes))}


async def begun(server: Server) -> list["asyncio.Task[str]"]:
    """Start the load; return when all of its streams are running."""
    tasks = [asyncio.create_task(outcome(stream(HOST, server.port, body(number)))) for number in range(STREAMS)]
    while (await asyncio.to_thread(server.metrics))["vllm:num_requests_running"] < STREAMS:
        await asyncio.sleep(0.01)
    return tasks


async def killed(server: Server) -> None:
    """Kill the engine under load."""
    tasks = await begun(server)
    killed_at = time.perf_counter()
    os.kill(server.engine, signal.SIGKILL)
    outcomes = await asyncio.gather(*tasks)
    told = time.perf_counter() - killed_at
    status, _ = await get(HOST, server.port, "/ready")
    await asyncio.to_thread(server.ready_after, 120)
    ready = time.perf_counter() - killed_at
    after = await outcome(stream(HOST, server.port, body(1)))
    record(
        "faults: kill -9 of the engine", streams=STREAMS, outcomes=counted(outcomes), all_told_seconds=round(told, 3),
        ready_meanwhile=status, ready_again_seconds=round(ready, 2), next_request=after,
    )  # fmt: skip
    assert counted(outcomes) == {"told: engine_error": STREAMS}
    assert (status, after) == (503, "finished")


async def slow(server: Server) -> None:
    """Have clients that do not read beside one that does."""
    alone = await stream(HOST, server.port, body(99))
    connections = [await open_request(HOST, server.port, {**body(n, 400), "stream": True}) for n in range(STREAMS)]
    while (await asyncio.to_thread(server.metrics))["vllm:num_requests_running"] < STREAMS:
        await asyncio.sleep(0.01)
    beside = await stream(HOST, server.port, body(99))
    for _, writer in connections:
        writer.transport.abort()
    record(
        "faults: slow readers", slow=STREAMS, beside_seconds=round(beside.moments[-1] - beside.began, 2),
        alone_seconds=round(alone.moments[-1] - alone.began, 2), same_text=beside.text == alone.text,
    )  # fmt: skip
    assert beside.text == alone.text


async def idle_connections(server: Server) -> None:
    """Open connections that send half a request, and ask beside them; they are dropped after the server's patience."""
    opened = [await asyncio.open_connection(HOST, server.port) for _ in range(500)]
    for _, writer in opened:
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
    began = time.perf_counter()
    status, _ = await get(HOST, server.port, "/health")
    health = time.perf_counter() - began
    beside = await outcome(stream(HOST, server.port, body(5)))
    ends = await asyncio.gather(*(reader.read() for reader, _ in opened), return_exceptions=True)
    dropped = time.perf_counter() - began
    for _, writer in opened:
        writer.close()
    record(
        "faults: half-sent heads", connections=len(ends), health_seconds=round(health, 3), beside=beside,
        all_dropped_seconds=round(dropped, 1),
    )  # fmt: skip
    assert (status, beside) == (200, "finished")


async def terminated(server: Server) -> None:
    """Ask the server to stop under load."""
    tasks = await begun(server)
    asked = time.perf_counter()
    server.process.send_signal(signal.SIGTERM)
    while (await get(HOST, server.port, "/ready"))[0] == 200:
        await asyncio.sleep(0.01)
    not_ready = time.perf_counter() - asked
    outcomes = await asyncio.gather(*tasks)
    code = await asyncio.to_thread(server.process.wait, 60)
    record(
        "faults: SIGTERM", streams=STREAMS, outcomes=counted(outcomes), not_ready_seconds=round(not_ready, 3),
        gone_seconds=round(time.perf_counter() - asked, 2), exit_code=code,
    )  # fmt: skip
    assert counted(outcomes) == {"finished": STREAMS}
    assert code == 0


async def full_disk(server: Server) -> None:
    """Serve while no line of the log can be written."""
    outcomes = await asyncio.gather(*(outcome(stream(HOST, server.port, body(n, 16))) for n in range(STREAMS)))
    dropped = (await asyncio.to_thread(server.metrics))["tuneserve_log_lines_dropped_total"]
    record("faults: a full disk for the log", requests=STREAMS, outcomes=counted(outcomes), lines_dropped=int(dropped))
    assert counted(outcomes) == {"finished": STREAMS}
    assert dropped >= STREAMS


def main() -> None:
    """Break it in every way."""
    with serving("demo") as server:
        asyncio.run(killed(server))
        asyncio.run(slow(server))
        asyncio.run(idle_connections(server))
        asyncio.run(terminated(server))
    with serving("demo", full_disk=True) as server:
        asyncio.run(full_disk(server))


if __name__ == "__main__":
    main()
