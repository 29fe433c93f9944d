"""From what the user asked to a plan."""

from pathlib import Path
from typing import get_args

from tuneserve.errors import InputError
from tuneserve.hardware import Machine, describe_machine
from tuneserve.planner._commands import commands, exports
from tuneserve.planner._decide import decide
from tuneserve.planner._model import PlannedModel, plan_model
from tuneserve.planner._options import Objective, Weigher, Wish
from tuneserve.planner._plan import Plan
from tuneserve.sources import BasePrecision, ResolvedSource, resolve

DEFAULT_CONTEXT = 8192
_DEFAULT_CONCURRENCY = {"throughput": 16}
_MOST = {"concurrency": 100_000, "adapters": 10_000}


def plan(
    source: str | Path | ResolvedSource,
    *,
    objective: Objective = "throughput",
    hardware: str | Machine = "auto",
    context: int | None = None,
    concurrency: int | None = None,
    adapters: int = 1,
    base: str | Path | None = None,
    base_precision: BasePrecision | None = None,
) -> Plan:
    """Choose method, engine and settings for a source, and estimate what they take, from configurations and headers.

    Args:
        source: what to serve; see :func:`tuneserve.sources.resolve`.
        objective: what matters most: throughput, latency, memory or simple.
        hardware: ``auto`` is this machine; else a description, see :func:`tuneserve.hardware.describe_machine`.
        context: tokens per sequence; None takes the model's, up to 8192.
        concurrency: sequences at once; None is 16 for throughput, else 1.
        adapters: how many adapters over the one base are to be served.
        base: what to use instead of the base that the adapter names.
        base_precision: of a quantised base; see :func:`tuneserve.sources.resolve`.

    Raises:
        HardwareError: there is no such hardware, or the model does not fit on it; the message says what would.
        InputError: the source or a number cannot be used as it is.
    """
    if objective not in get_args(Objective):
        raise InputError(f"the objective {str(objective)[:40]!r} is unknown; choose {', '.join(get_args(Objective))}.")
    machine = describe_machine(hardware) if isinstance(hardware, str) else hardware
    wished = {"concurrency": _concurrency(concurrency, objective), "adapters": adapters}
    for name, value in wished.items():
        if not 1 <= value <= _MOST[name]:
            raise InputError(f"{name} is outside 1 to {_MOST[name]}; choose a number within.")
    if not isinstance(source, ResolvedSource):
        source = resolve(source, base=base, base_precision=base_precision)
    model = plan_model(source)
    wish = Wish(objective=objective, context=_context(model, context), **wished)
    weigher = Weigher(model, machine, wish)
    decision = decide(weigher)
    taken = decision.taken
    assert taken.fit is not None
    max_running = min(-(-wish.concurrency // taken.replicas), taken.fit.sequences)
    return Plan(
        model=model,
        machine=machine,
        wish=wish,
        steps=decision.steps,
        taken=taken,
        exports=exports(model, taken),
        max_running=max_running,
        considered=decision.considered,
        weighed=decision.weighed,
        commands=commands(model, machine, wish, taken, max_running, decision.unmerged),
    )


def _concurrency(wished: int | None, objective: Objective) -> int:
    return _DEFAULT_CONCURRENCY.get(objective, 1) if wished is None else wished


def _context(model: PlannedModel, wished: int | None) -> int:
    most = model.context
    if wished is None:
        return min(most or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    if not 2 <= wished <= (most or 1 << 24):
        has = f"{model.source.name} was made for {most:,}" if most else "no model has so many"
        raise InputError(f"a context of {wished:,} tokens was asked for and {has}; choose one from 2 to that.")
    return wished
