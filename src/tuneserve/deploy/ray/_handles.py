"""Replicas behind a Serve handle."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from tuneserve.deploy.ray._engine import ReplicaLostError
from tuneserve.deploy.ray._options import RayOptions
from tuneserve.deploy.ray._replica import Accepted, Failed, Refused
from tuneserve.deploy.ray._routing import route_key
from tuneserve.engines.contract import EngineInfo, EngineStats, GenerationRequest, TokenChunk
from tuneserve.errors import EngineError, RequestError

# Less than the gateway waits for it.
_STATS_SECONDS = 1.5


class HandleReplicas:
    """The replicas of the deployment behind ``handle``, a :class:`ray.serve.handle.DeploymentHandle`."""

    def __init__(self, handle: Any, options: RayOptions) -> None:
        self._handle = handle
        self._streaming = handle.options(stream=True, method_name="generate")
        self._options = options
        self._waiting, self._running = _Count(), _Count()
        self._known: list[EngineStats] = []

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """Generate on one of them; see :class:`~tuneserve.deploy.ray._engine.Replicas`."""
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import RayServeException

        key = route_key(request.prompt_ids, request.adapter, self._options.prefix_blocks)
        messages = self._streaming.remote(request, key)
        ended = False
        try:
            with self._waiting.one_more():
                async with asyncio.timeout(self._options.queue_seconds):
                    accepted = await anext(messages)
            assert isinstance(accepted, Accepted)
            with self._running.one_more():
                async for message in messages:
                    match message:
                        case TokenChunk():
                            ended = message.finish_reason is not None
                            yield message
                        case Refused():
                            ended = True
                            raise RequestError(message.message, message.param)
                        case Failed():
                            ended = True
                            raise EngineError(message.message)
        except TimeoutError:
            raise EngineError(
                f"no replica took the request within {self._options.queue_seconds:g} seconds; see 'serve status', and "
                "add replicas where they are all busy."
            ) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ReplicaLostError("it was stopped while it worked") from None
        except RayTaskError as error:
            raise EngineError(f"a replica failed unexpectedly ({_first_line(error)}); report it.") from None
        except RayError as error:
            raise ReplicaLostError(_first_line(error)) from None
        except RayServeException as error:
            raise EngineError(f"there are no replicas ({_first_line(error)}); see 'serve status'.") from None
        finally:
            if not ended:
                messages.cancel()

    async def info(self) -> EngineInfo:
        """Return what the replicas serve, once one is ready; ``max_running`` is that of as many as there may be."""
        info: EngineInfo = await self._handle.info.remote()
        return msgspec.structs.replace(info, max_running=self._options.max_running * self._options.max_replicas)

    async def stats(self) -> EngineStats:
        """Return the load: sequences are this gateway's, the caches are those of all replicas as far as is known."""
        from ray.exceptions import RayError

        # Where a replica has just gone, they do not all answer.
        with contextlib.suppress(RayError, TimeoutError):
            async with asyncio.timeout(_STATS_SECONDS):
                answers = await self._handle.broadcast("stats").results_async(return_exceptions=True)
            self._known = [answer for answer in answers if isinstance(answer, EngineStats)]
        known = self._known
        return EngineStats(
            running=self._running.value,
            waiting=self._waiting.value,
            cache_usage=sum(stats.cache_usage for stats in known) / max(1, len(known)),
            prefix_queries=sum(stats.prefix_queries for stats in known),
            prefix_hits=sum(stats.prefix_hits for stats in known),
        )


@dataclass
class _Count:
    value: int = 0

    @contextlib.contextmanager
    def one_more(self) -> Iterator[None]:
        self.value += 1
        try:
            yield
        finally:
            self.value -= 1


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200].rstrip(".")
