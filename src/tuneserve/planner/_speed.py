"""How fast an engine decodes: what was measured of it, scaled by what a step reads and by what it reads from."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

from tuneserve.planner._model import PlannedModel


@cache
def figures() -> Mapping[str, Any]:
    """Return ``efficiency.toml``."""
    return tomllib.loads(files(__package__).joinpath("efficiency.toml").read_text())


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Tokens per second at half the context, over all of ``sequences`` and for one that is alone.

    ``limit`` is what the bandwidth allows one sequence. Speeds are None where the engine was not measured; ``basis``
    says what they were scaled from, or that there is nothing.
    """

    sequences: int
    total: float | None
    alone: float | None
    limit: float | None
    basis: str


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a decode step reads: ``weights`` bytes of weights in all, ``cache`` of each sequence, from ``bandwidth``.

    ``cores`` are the processor's, None where a GPU computes.
    """

    model: PlannedModel
    weights: int
    cache: int
    bandwidth: float
    cores: int | None = None

    def bytes(self, sequences: int) -> float:
        """Return the bytes of a step."""
        return self.weights * self.model.read_share(sequences) + sequences * self.cache


def estimate(engine: str, device: str, kind: str, load: Load | None, sequences: int) -> Speed:
    """Estimate the speed of ``engine`` with weights of ``kind`` (16bit, fp8, lora, bitsandbytes, int4, gguf)."""
    if load is None:
        basis = "the bandwidth is not known"
        return Speed(sequences=sequences, total=None, alone=None, limit=None, basis=basis)
    limit = load.bandwidth / load.bytes(1)
    # The kernels for fp8 are of the same kind as those for 16 bits.
    wanted = {"fp8": "16bit"}.get(kind, kind)
    entry = next((row for row in figures()["speed"] if _key(row) == (engine, device, wanted)), None)
    if entry is None:
        return Speed(sequences=sequences, total=None, alone=None, limit=limit, basis=f"{engine} was not measured so")
    together, alone = (_step(entry, load, count) for count in (sequences, 1))
    scaled = "" if wanted == kind else f" (in {wanted}; {kind} itself was not measured)"
    return Speed(
        sequences=sequences,
        total=None if together is None else sequences / together,
        alone=None if alone is None else 1 / alone,
        limit=limit,
        basis=f"{entry['measured']}{scaled}",
    )


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["engine"], row["device"], row["weights_are"]


def _step(entry: Mapping[str, Any], load: Load, sequences: int) -> float | None:
    """Return the seconds of a decode step."""
    measured = _measured_step(entry["tokens_per_second"], sequences)
    if measured is None:
        return None
    least = load.bytes(sequences) / load.bandwidth
    if "layers" in entry:
        return max(least, float(measured * load.model.cache.layers / entry["layers"]))
    then = entry["weights"] + sequences * entry["cache"]
    fixed, now = (_fixed(entry, layers, sequences) for layers in (entry.get("of_layers", 0), load.model.cache.layers))
    if "cores" in entry:
        # Two cores do not exhaust their memory: more of them are faster, until it is.
        scale = load.bytes(sequences) / then * entry["cores"] / (load.cores or entry["cores"])
        return max(least, float(now + (measured - fixed) * scale))
    return float(now + (measured - fixed) * least / (then / entry["bandwidth"]))


def _fixed(entry: Mapping[str, Any], layers: int, sequences: int) -> float:
    """Return the seconds of a step that do not depend on what is read."""
    each, per_sequence = entry.get("per_layer", (0.0, 0.0))
    return float(entry.get("fixed", 0.0) + layers * (each + per_sequence * sequences))


def _measured_step(points: list[list[float]], sequences: int) -> float | None:
    """Return the seconds of the measured step, linear between the points and on; None beyond a single one."""
    steps = [(count, count / speed) for count, speed in points]
    if sequences == 1:
        return steps[0][1]
    if len(steps) == 1:
        return None
    for (low, before), (high, after) in pairwise(steps):
        if sequences <= high or high == steps[-1][0]:
            return before + (after - before) * (sequences - low) / (high - low)
    raise AssertionError("the last pair takes everything")
