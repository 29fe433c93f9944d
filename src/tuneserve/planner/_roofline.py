"""What memory bandwidth allows, whatever the engine: a step reads its weights once, and each sequence's cache."""

from dataclasses import dataclass

from tuneserve.hardware import Machine
from tuneserve.planner._model import PlannedModel, plan_model
from tuneserve.planner._speed import Load
from tuneserve.sources import ResolvedSource


@dataclass(frozen=True)
class Roofline:
    """The limit for ``model`` with ``weights`` bytes of weights in memory, read at ``bandwidth`` bytes per second."""

    model: PlannedModel
    weights: int
    bandwidth: float

    def tokens_per_second(self, sequences: int, tokens: int) -> float:
        """Return the limit of all ``sequences`` together, each of ``tokens`` in its cache."""
        cache = self.model.cache.bytes(tokens)
        load = Load(model=self.model, weights=self.weights, cache=cache, bandwidth=self.bandwidth)
        return sequences * self.bandwidth / load.bytes(sequences)


def roofline(source: ResolvedSource, weights: int, machine: Machine) -> Roofline | None:
    """Return the limit of one device, None where its bandwidth is not known.

    Raises:
        InputError: the source cannot be used as it is.
    """
    bandwidth = machine.gpus[0].bandwidth if machine.gpus else machine.bandwidth
    return Roofline(plan_model(source), weights, bandwidth) if bandwidth else None
