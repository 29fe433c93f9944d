"""Rotary positions and the ways of stretching them, as data."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """All frequencies are divided by ``factor`` (arXiv:2306.15595)."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """High frequencies stay, low ones are divided by ``factor``, and between them the two are blended.

    Wavelengths are compared with ``original_length`` over ``high`` and over ``low`` (arXiv:2407.21783).
    """

    factor: float
    low: float
    high: float
    original_length: int


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """Frequencies are divided by ``factor`` or left alone along a ramp (arXiv:2309.00071).

    The ramp goes from what turns ``beta_fast`` times in ``original_length`` to what turns ``beta_slow`` times, its ends
    rounded outwards if ``truncate``. Cosines and sines are multiplied by ``attention_factor``.
    """

    factor: float
    original_length: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: bool


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """Each frequency is divided by a factor of its own (arXiv:2402.13753).

    The ``long`` factors are for contexts beyond ``original_length``, the ``short`` ones for those within. Cosines and
    sines are multiplied by ``attention_factor`` in both.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_length: int
    attention_factor: float


@dataclass(frozen=True, kw_only=True)
class ProportionalScaling:
    """The first ``pairs`` of a head's elements turn, as slowly as if all did, and the others do not (Gemma 4).

    Their frequencies are divided by ``factor``.
    """

    pairs: int
    factor: float


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling | ProportionalScaling


@dataclass(frozen=True, kw_only=True)
class QueryScaling:
    """Queries far into a text are multiplied by 1 + beta * log(1 + position // original_length), as in Llama 4."""

    beta: float
    original_length: int


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Rotary positions (arXiv:2104.09864) of the first ``dim`` elements of each head, of base ``theta``.

    The first half of them is rotated with the second, as in Hugging Face checkpoints; what follows is left alone.
    """

    theta: float
    dim: int
    scaling: RopeScaling | None = None
