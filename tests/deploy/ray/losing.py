"""Replicas that are lost when they are told to, over a real engine or a scripted one."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

import msgspec

from tuneserve.deploy.ray._engine import ReplicaLostError
from tuneserve.engines.contract import EngineInfo, EngineStats, GenerationRequest, TokenChunk

Generate = Callable[[GenerationRequest], AsyncGenerator[TokenChunk, None]]


@dataclass
class LosingReplicas:
    """``generate`` on replicas of which the next is lost after each number of tokens in ``lose_after``."""

    generate: Generate
    lose_after: list[int] = field(default_factory=list)
    requests: list[GenerationRequest] = field(default_factory=list)

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        self.requests.append(request)
        left = self.lose_after.pop(0) if self.lose_after else None
        if left == 0:
            raise ReplicaLostError("it was told to")
        async with aclosing(self.generate(request)) as chunks:
            async for chunk in chunks:
                if left is None:
                    yield chunk
                    continue
                some = chunk.token_ids[:left]
                left -= len(some)
                # The word that says why it ends is what gets lost.
                yield msgspec.structs.replace(chunk, token_ids=some, finish_reason=None)
                if left == 0:
                    raise ReplicaLostError("it was told to")

    async def stats(self) -> EngineStats:
        return EngineStats(running=2, waiting=1, cache_usage=0.5, prefix_queries=30, prefix_hits=10)


def info(*, resumes: bool, context_length: int = 64) -> EngineInfo:
    return EngineInfo(
        engine="scripted", version="1", context_length=context_length, vocab_size=1000, dtype="float32", device="cpu",
        weight_bytes=1, max_running=8, resumes=resumes,
    )  # fmt: skip


async def counting(request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
    """Continue with the last token plus one, as an engine that begins anew after whatever its prompt is."""
    length, last = len(request.prompt_ids), request.prompt_ids[-1]
    most = request.params.max_tokens or 64 - length
    had = request.resumed
    for count in range(1, most - had + 1):
        token = last + count
        stops = token in request.params.stop_token_ids
        yield TokenChunk(
            token_ids=[token], finish_reason="stop" if stops else "length" if count == most - had else None
        )
        if stops:
            return
