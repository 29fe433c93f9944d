"""What is known of an engine before it runs: whether it can serve a source, what would help, and how it is started."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

from tuneserve.engines.contract import Engine
from tuneserve.sources import ResolvedSource


@dataclass(frozen=True)
class NamedAdapter:
    """An adapter that requests choose by ``name``."""

    name: str
    directory: Path


CPU_STEPS = ("auto", "compiled", "eager")
WEIGHTS = ("auto", "dequantised", "int8", "int4")


@dataclass(frozen=True, kw_only=True)
class NativeOptions:
    """What only the native engine can be asked for; see :class:`tuneserve.native.EngineConfig` for what each means.

    ``cpu_step`` is one of :data:`CPU_STEPS`, ``weights`` of :data:`WEIGHTS`.
    """

    cache_tokens: int | None = None
    prefix_cache: bool = True
    speculation: int = 0
    cpu_step: str = "auto"
    weights: str = "auto"

    def given(self) -> list[str]:
        """Return the names of those that are not at their default."""
        return [field.name for field in fields(self) if getattr(self, field.name) != field.default]


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What the user asked of an engine; None and ``auto`` leave it to the engine.

    ``program`` is the engine's own interpreter or binary, ``arguments`` go to it as they are. ``logs`` is the directory
    that keeps what it says. ``native`` is for the native engine; whoever chooses the engine refuses it for others.
    """

    context_length: int | None = None
    max_running: int | None = None
    dtype: str = "auto"
    tensor_parallel: int = 1
    program: Path | None = None
    arguments: tuple[str, ...] = ()
    logs: Path | None = None
    native: NativeOptions = NativeOptions()


@dataclass(frozen=True)
class Preflight:
    """Whether an engine can serve a source as it is.

    ``problems`` are all the reasons why it cannot, each a clause without a full stop. ``export`` is the method whose
    artifact it can serve instead, None where there is none; of a source with an adapter that artifact is merged.
    ``adapter_export`` is the method that makes of each unmerged adapter what it can load, whose directory then takes
    the place of the adapter's; None where they are loaded as they are, or not at all. ``notes`` are worth telling
    although it can.
    """

    problems: tuple[str, ...] = ()
    export: str | None = None
    notes: tuple[str, ...] = ()
    adapter_export: str | None = None


class EngineKind(Protocol):
    """One engine, running or not."""

    @property
    def name(self) -> str:
        """What ``--engine`` calls it."""

    def check(self, source: ResolvedSource, adapters: Sequence[NamedAdapter], options: ServeOptions) -> Preflight:
        """Say whether it can serve ``source`` with ``adapters`` unmerged. Reads configs and headers, starts nothing.

        Raises:
            InputError: an option is not one that the engine has.
            EngineError: the engine is not installed.
        """

    async def start(
        self, source: ResolvedSource, adapters: Sequence[NamedAdapter], options: ServeOptions, name: str
    ) -> Engine:
        """Start it under supervision and wait until it takes requests; what it serves is called ``name``.

        Raises:
            InputError: the source cannot be served as it is.
            EngineError: it did not start; the message has its last lines.
        """
