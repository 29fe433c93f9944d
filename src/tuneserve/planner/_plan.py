"""The plan as data."""

from dataclasses import asdict, dataclass
from typing import Any

from tuneserve.hardware import Machine
from tuneserve.planner._commands import Commands
from tuneserve.planner._decide import Considered
from tuneserve.planner._model import PlannedModel
from tuneserve.planner._options import Option, Wish
from tuneserve.planner._tree import Step

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The explained choice of method, engine and settings; docs/plan.md documents :meth:`to_dict`.

    ``weighed`` are the options whose memory was estimated, the one that is ``taken`` among them.
    """

    model: PlannedModel
    machine: Machine
    wish: Wish
    steps: tuple[Step, ...]
    taken: Option
    exports: bool
    max_running: int
    considered: tuple[Considered, ...]
    weighed: tuple[Option, ...]
    commands: Commands

    @property
    def method(self) -> str:
        """How the weights are stored; see :func:`tuneserve.export`."""
        return self.taken.method

    @property
    def engine(self) -> str:
        """What runs them."""
        return self.taken.engine

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready values, of the same form in every release that has the same ``format``."""
        taken, fit, speed = self.taken, self.taken.fit, self.taken.speed
        assert fit is not None and speed is not None, "only what fits is taken"
        return {
            "format": FORMAT,
            "source": self.model.source.name,
            "model": {
                "family": self.model.family,
                "parameters": self.model.parameters,
                "context_length": self.model.context,
                "cache_bytes_per_token": self.model.cache.per_token,
                "sliding_window": self.model.cache.window,
                "experts": asdict(self.model.experts) if self.model.experts else None,
            },
            "hardware": _machine(self.machine),
            "wish": asdict(self.wish),
            "choice": {
                "method": taken.method,
                "engine": taken.engine,
                "exports": self.exports,
                "context": self.wish.context,
                "max_running": self.max_running,
                "tensor_parallel": taken.tensor,
                "pipeline_parallel": taken.pipeline,
                "replicas": taken.replicas,
            },
            "estimates": {
                "weight_file_bytes": taken.weights,
                "per_device": asdict(fit),
                "sequences": taken.sequences,
                "speed": asdict(speed),
            },
            "steps": [asdict(step) for step in self.steps],
            "considered": [asdict(each) for each in self.considered],
            "commands": list(self.commands.shell),
            "python": list(self.commands.python),
            "notes": [*self.machine.notes, *self.commands.notes],
        }


def _machine(machine: Machine) -> dict[str, Any]:
    gpu = machine.gpus[0] if machine.gpus else None
    return {
        "name": machine.name,
        "kind": machine.kind,
        "machines": machine.count,
        "gpus_per_machine": len(machine.gpus),
        "gpu": None if gpu is None else asdict(gpu),
        "cores": machine.cores,
        "memory": machine.memory,
        "bandwidth": machine.bandwidth,
    }
