"""Machines as data."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU, or the GPU of an Apple chip.

    ``memory`` is in bytes (of an Apple chip: the machine's), ``bandwidth`` in bytes per second by the data sheet, None
    where it is not known. ``capability`` is CUDA's compute capability, None on Apple chips.
    """

    name: str
    memory: int
    bandwidth: float | None
    capability: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One machine, or ``count`` alike.

    ``gpus`` are alike. ``memory`` is what can be used of the main memory in bytes, None where that of a described GPU
    machine is not known; ``bandwidth`` that of the main memory in bytes per second; ``cores`` of the processor.
    ``notes`` say what was assumed or left out.
    """

    name: str
    kind: Literal["nvidia", "cpu", "mac"]
    gpus: tuple[Gpu, ...] = ()
    count: int = 1
    cores: int | None = None
    memory: int | None = None
    bandwidth: float | None = None
    notes: tuple[str, ...] = ()
