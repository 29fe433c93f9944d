"""Many streams at once through the native engine: none lost, none mixed up, and /health answers throughout.

    python benchmarks/serving/streams.py [STREAMS]

Each stream has a prompt of its own, and its text has to be the one that the same prompt gets alone, greedily. On a CPU
the engine's step gives the same bits alone and in a batch, so any difference is text that went astray.
"""

import asyncio
import sys
import time

from _client import Answer, Lost, get, stream
from _server import HOST, record, serving

TOKENS = 48


def body(number: int) -> dict[str, object]:
    """Return the request of one stream."""
    question = f"My number is {number}. Repeat my number, then tell me something about the year {1800 + number}."
    return {
        "model": "demo",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": TOKENS,
    }


async def watch(port: int, done: asyncio.Event) -> list[float]:
    """Ask for /health ten times a second until all is done; return how long each answer took."""
    seconds = []
    while not done.is_set():
        began = time.perf_counter()
        status, _ = await get(HOST, port, "/health")
        assert status == 200
        seconds.append(time.perf_counter() - began)
        await asyncio.sleep(0.1)
    return seconds


async def run(port: int, streams: int) -> None:
    """Measure and record."""
    alone = [await stream(HOST, port, body(number)) for number in range(streams)]
    done = asyncio.Event()
    watching = asyncio.create_task(watch(port, done))
    began = time.perf_counter()
    together = await asyncio.gather(
        *(stream(HOST, port, body(number)) for number in range(streams)), return_exceptions=True
    )
    seconds = time.perf_counter() - began
    done.set()
    health = await watching
    answers = [answer for answer in together if isinstance(answer, Answer) and answer.reason is not None]
    mixed = sum(isinstance(one, Answer) and one.text != other.text for one, other in zip(together, alone, strict=True))
    for error in together:
        assert isinstance(error, Answer | Lost | OSError), error
    first = sorted(answer.first_seconds for answer in answers)
    record(
        "streams", streams=streams, lost=streams - len(answers), mixed_up=mixed, seconds=round(seconds, 2),
        tokens_per_second=round(sum(len(answer.moments) for answer in answers) / seconds, 1),
        first_token_seconds_median=round(first[len(first) // 2], 3), first_token_seconds_worst=round(first[-1], 3),
        health_answers=len(health), health_seconds_worst=round(max(health), 3),
    )  # fmt: skip
    assert len(answers) == streams
    assert not mixed
    assert max(health) < 1


def main() -> None:
    """Serve and measure."""
    with serving("demo") as server:
        asyncio.run(run(server.port, int(sys.argv[1]) if len(sys.argv) > 1 else 200))


if __name__ == "__main__":
    main()
