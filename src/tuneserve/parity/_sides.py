"""The two sides of a comparison as files: what each consists of, before any weight is read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneserve.checkpoint import WeightReader
from tuneserve.sources import ResolvedSource, open_model


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
    def weights(self) -> int:
        """How many weights the model has, its adapter aside."""
        return sum(math.prod(spec.shape) for spec in self.reader.tensors.values())

    @property
    def adapter_dir(self) -> Path | None:
        """The adapter's directory."""
        return self.source.adapter_dir


def open_side(source: ResolvedSource) -> Side:
    """Open the files of ``source``.

    Raises:
        InputError: they cannot be used as they are.
    """
    reader, config = open_model(source)
    return Side(source, config, reader)
