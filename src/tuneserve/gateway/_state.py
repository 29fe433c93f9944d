"""What all requests share: the models once they are loaded, whether new ones are taken, and how many are running."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from tuneserve.gateway._callers import Callers
from tuneserve.gateway._errors import ApiError, quoted, unavailable
from tuneserve.gateway._metrics import Metrics
from tuneserve.gateway._prompts import TextWorkers
from tuneserve.gateway._record import Record, current
from tuneserve.gateway._served import ServedModel
from tuneserve.gateway._settings import Settings

if TYPE_CHECKING:
    from tuneserve.gateway._trace import Tracer

__all__ = ["Gateway", "Settings", "Status"]

_LISTED = 10
Status = Literal["starting", "ready", "draining", "failed"]


class Gateway:
    """The state of one gateway; it is starting until :meth:`open`.

    Raises:
        InputError: the file of keys is not usable, or tracing is not installed.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.callers = None if settings.api_keys is None else Callers(settings.api_keys)
        self.tracer = _tracer(settings.otlp_endpoint)
        self.metrics = Metrics()
        self.workers = TextWorkers()
        self._served: tuple[ServedModel, ...] = ()
        self._draining = False
        self._running: set[int] = set()
        self._working: dict[int, Record] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def served(self) -> tuple[ServedModel, ...]:
        """The models, each with an engine of its own, without those of their adapters; none while they load."""
        return self._served

    @property
    def status(self) -> Status:
        """Where this gateway is in its life."""
        if self._draining:
            return "draining"
        if not self._served:
            return "starting"
        return "ready" if all(served.engine.ready for served in self._served) else "failed"

    def open(self, *served: ServedModel) -> None:
        """Take requests for ``served`` from now on; requests that name no model mean the first."""
        self._served = served

    def change(self, served: ServedModel) -> None:
        """Let ``served`` take the place of the model of the same name."""
        self._served = tuple(served if each.name == served.name else each for each in self._served)

    def host_of(self, adapter: ServedModel) -> ServedModel:
        """Return the model on whose engine ``adapter`` runs."""
        return next(served for served in self._served if served.engine is adapter.engine)

    def drain(self) -> None:
        """Take no new requests from now on."""
        self._draining = True

    async def idle(self) -> None:
        """Wait until no request is running."""
        await self._idle.wait()

    @contextlib.contextmanager
    def running(self, record: Record) -> Iterator[None]:
        """Count a request as running."""
        self._running.add(id(record))
        self._idle.clear()
        try:
            yield
        finally:
            self._running.remove(id(record))
            self._working.pop(id(record), None)
            if record.allowance is not None:
                record.allowance.finish()
            if not self._running:
                self._idle.set()

    def queue(self, record: Record) -> None:
        """Count a request as one that makes the engine work.

        Raises:
            ApiError: 429, as many as may are waiting already.
        """
        if self._served:
            sequences = sum(max(1, each.sequences) for each in self._working.values())
            room = sum(served.engine.info.max_running for served in self._served) + self.settings.max_queue
            if sequences >= room:
                message = (
                    f"{room} sequences are running or waiting, the most that this server takes; send it again later."
                )
                raise ApiError(429, message, code="queue_full", headers={"Retry-After": "1"})
        self._working[id(record)] = record

    def admit(self) -> ServedModel:
        """Return the model that requests mean which name none, for a new request.

        Raises:
            ApiError: no requests are taken now.
        """
        if self._draining:
            raise unavailable("The server is shutting down; send the request to another, or again later.", "draining")
        if not self._served:
            raise unavailable("The server is still loading the model; send the request again later.", "starting")
        # With one engine down, the others' models are still served.
        if not any(served.engine.ready for served in self._served):
            raise down()
        return self._served[0]

    def find(self, name: str) -> ServedModel:
        """Return the model that ``name`` means.

        Raises:
            ApiError: there is none, or no requests are taken for it now.
        """
        models = self.models()
        for served in models:
            if name == served.name:
                if (record := current.get()) is not None:
                    record.model = name
                if not served.engine.ready:
                    raise down()
                return served
        names = ", ".join(repr(served.name) for served in models[:_LISTED])
        more = f" and {len(models) - _LISTED} more" if len(models) > _LISTED else ""
        message = f"There is no model {quoted(name)} here; this server has {names}{more}."
        raise ApiError(404, message, param="model", code="model_not_found")

    def models(self) -> tuple[ServedModel, ...]:
        """Return the models, each followed by those of its adapters.

        Raises:
            ApiError: no requests are taken now.
        """
        self.admit()
        return tuple(model for served in self._served for model in (served, *served.adapters))


def down() -> ApiError:
    """Return the answer for a model whose engine is not running."""
    return unavailable(
        "The engine behind this model is not running; send the request again later, or see the server's log.",
        "engine_error",
    )


def _tracer(endpoint: str | None) -> "Tracer | None":
    if endpoint is None:
        return None
    from tuneserve.gateway._trace import Tracer

    return Tracer(endpoint)
