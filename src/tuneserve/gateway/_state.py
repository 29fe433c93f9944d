"""What all requests share: the model once it is loaded, whether new ones are taken, and how many are running."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tuneserve.gateway._errors import ApiError, quoted, unavailable
from tuneserve.gateway._metrics import Metrics
from tuneserve.gateway._prompts import TextWorkers
from tuneserve.gateway._served import ServedModel

_LISTED = 10
Status = Literal["starting", "ready", "draining", "failed"]


@dataclass(frozen=True)
class Settings:
    """How the gateway treats requests.

    ``max_body_bytes`` bounds a request body. ``allowed_hosts``, where given, are the only names that a ``Host`` header
    may carry, in lower case and without port. With ``lenient``, fields that nobody knows are ignored instead of
    refused. ``adapter_dirs`` are where adapters may be loaded from while the server runs.
    """

    max_body_bytes: int = 8 << 20
    allowed_hosts: frozenset[str] | None = None
    lenient: bool = False
    adapter_dirs: tuple[Path, ...] = ()


class Gateway:
    """The state of one gateway; it is starting until :meth:`open`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.workers = TextWorkers()
        self._served: ServedModel | None = None
        self._draining = False
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def served(self) -> ServedModel | None:
        """The model, None while it loads."""
        return self._served

    @property
    def status(self) -> Status:
        """Where this gateway is in its life."""
        if self._draining:
            return "draining"
        if self._served is None:
            return "starting"
        return "ready" if self._served.engine.ready else "failed"

    def open(self, served: ServedModel) -> None:
        """Take requests for ``served`` from now on."""
        self._served = served

    def drain(self) -> None:
        """Take no new requests from now on."""
        self._draining = True

    async def idle(self) -> None:
        """Wait until no request is running."""
        await self._idle.wait()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count a request as running."""
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    def admit(self) -> ServedModel:
        """Return the model for a new request.

        Raises:
            ApiError: no requests are taken now.
        """
        status = self.status
        if status == "draining":
            raise unavailable("The server is shutting down; send the request to another, or again later.", "draining")
        if self._served is None:
            raise unavailable("The server is still loading the model; send the request again later.", "starting")
        if status == "failed":
            raise unavailable(
                "The engine behind this server is not running; send the request again later, or see the server's log.",
                "engine_error",
            )
        return self._served

    def find(self, name: str) -> ServedModel:
        """Return the model that ``name`` means.

        Raises:
            ApiError: there is none, or no requests are taken now.
        """
        models = self.models()
        for served in models:
            if name == served.name:
                return served
        names = ", ".join(repr(served.name) for served in models[:_LISTED])
        more = f" and {len(models) - _LISTED} more" if len(models) > _LISTED else ""
        message = f"There is no model {quoted(name)} here; this server has {names}{more}."
        raise ApiError(404, message, param="model", code="model_not_found")

    def models(self) -> tuple[ServedModel, ...]:
        """Return the model and those of its adapters.

        Raises:
            ApiError: no requests are taken now.
        """
        served = self.admit()
        return served, *served.adapters
