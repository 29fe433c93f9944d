"""The two sides of a comparison as files: what each consists of, before any weight is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneserve.checkpoint import WeightReader
from tuneserve.sources import ResolvedSource, open_model

OpenModel = Callable[[ResolvedSource], tuple[WeightReader, Mapping[str, Any]]]


@dataclass(frozen=True)
class Side:
    """A model: its configuration (``config.json``), its weights, and the adapter over them if there is one."""

    source: ResolvedSource
    config: Mapping[str, Any]
    reader: WeightReader

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.source.name

    @property
    def adapter_dir(self) -> Path | None:
        """The adapter's directory."""
        return self.source.adapter_dir


def open_side(source: ResolvedSource, opener: OpenModel = open_model) -> Side:
    """Open the files of ``source``.

    Raises:
        InputError: they cannot be used as they are.
    """
    reader, config = opener(source)
    return Side(source, config, reader)
