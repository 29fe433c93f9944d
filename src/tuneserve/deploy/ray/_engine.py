"""Many replicas of one engine, behind the contract of one."""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

import msgspec

from tuneserve.deploy.ray._resume import finished, resumption
from tuneserve.engines.contract import EngineInfo, EngineStats, GenerationRequest, TokenChunk
from tuneserve.errors import EngineError

_logger = logging.getLogger("tuneserve.deploy")
# A request that ends every replica it meets must not meet them all.
_MOST_LOSSES = 3


class ReplicaLostError(EngineError):
    """A replica went away while it worked on a sequence; the message says how, without a full stop."""


class Replicas(Protocol):
    """What there is behind a :class:`ReplicatedEngine`."""

    def stream(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """Generate on one of them.

        Raises:
            ReplicaLostError: it went away.
            RequestError: the request can never be served.
            EngineError: the engine failed on it, or none of them took it in time.
        """

    async def stats(self) -> EngineStats:
        """Return the load of all of them together."""


class ReplicatedEngine:
    """Replicas as one engine; see :class:`~tuneserve.engines.contract.Engine`.

    A sequence whose replica is lost before its first token is begun again on another, and one that has tokens goes on
    after them, exactly as it would have; where that is not certain it ends with an error.
    """

    def __init__(self, replicas: Replicas, info: EngineInfo) -> None:
        self._replicas = replicas
        self._info = info
        self._closed = False
        self._retried = self._resumed = self._broken_off = 0

    @property
    def info(self) -> EngineInfo:
        """What is being served; ``max_running`` is that of all replicas together."""
        return self._info

    @property
    def ready(self) -> bool:
        """Whether requests are taken; where all replicas are lost, they wait until one is there again."""
        return not self._closed

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """Continue one sequence; see the contract."""
        if self._closed:
            raise EngineError("the engine was stopped; start it again.")
        tokens: list[int] = []
        losses = 0
        now: GenerationRequest | None = request
        while now is not None:
            try:
                async with aclosing(self._replicas.stream(now)) as chunks:
                    async for chunk in chunks:
                        tokens += chunk.token_ids
                        yield chunk
                        if chunk.finish_reason is not None:
                            return
                raise EngineError("a replica ended a sequence without saying why; report it with the engine's version.")
            except ReplicaLostError as lost:
                losses += 1
                if reason := finished(request, tokens, self._info):
                    yield TokenChunk(token_ids=[], finish_reason=reason)
                    return
                now = self._again(request, tokens, losses, lost)

    async def stats(self) -> EngineStats:
        """Return the load of all replicas together, and what became of sequences on lost ones."""
        return msgspec.structs.replace(
            await self._replicas.stats(),
            retried=self._retried,
            resumed=self._resumed,
            broken_off=self._broken_off,
        )

    async def close(self) -> None:
        """Take no more requests; the replicas are not this engine's to end."""
        self._closed = True

    def _again(
        self, request: GenerationRequest, tokens: list[int], losses: int, lost: ReplicaLostError
    ) -> GenerationRequest:
        again = resumption(request, tokens, self._info) if losses < _MOST_LOSSES else None
        if again is None:
            self._broken_off += 1
            why = "was lost too" if losses >= _MOST_LOSSES else "was lost, and its draws cannot go on elsewhere"
            raise EngineError(f"the sequence's replica {why} ({lost}); send the request again.") from None
        if tokens:
            self._resumed += 1
        else:
            self._retried += 1
        _logger.warning("a replica was lost (%s); its sequence goes on elsewhere after %d tokens", lost, len(tokens))
        # One that could only not be reached may still be working on the sequence.
        return msgspec.structs.replace(again, id=f"{request.id}-{losses}")
