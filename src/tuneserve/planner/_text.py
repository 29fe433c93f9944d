"""The plan for people."""

from tuneserve.planner._decide import Considered
from tuneserve.planner._plan import Plan

_GOALS = {"simple": "simplicity"}


def explain(plan: Plan) -> str:
    """Return the tree with the branch that was taken, the numbers, what else was considered, and the commands."""
    lines = [asked(plan), ""]
    for step in plan.steps:
        lines += [f"├─ {step.question} {step.answer}", f"│    {step.because}"]
    lines += [f"└─ {chosen(plan)}", ""]
    numbers = estimates(plan)
    width = max(map(len, numbers))
    lines += [f"  {name:<{width}}  {value}" for name, value in numbers.items()]
    if others := others_considered(plan):
        lines += ["", "Also considered:", *(f"  {each.option}: {each.why_not}" for each in others)]
    lines += ["", "Commands:", *(f"  {line}" for line in plan.commands.shell)]
    if plan.commands.python:
        lines += ["", "In Python:", *(f"  {line}" for line in plan.commands.python)]
    if notes := (*plan.machine.notes, *plan.commands.notes):
        lines += ["", *(f"Note: {note}." for note in notes)]
    return "\n".join(lines)


def asked(plan: Plan) -> str:
    """Return what was asked for."""
    wish = plan.wish
    goal = _GOALS.get(wish.objective, wish.objective)
    load = f"{wish.concurrency:,} × {wish.context:,} tokens"
    return f"{plan.model.source.name} on {plan.machine.name}, for {goal}: {load}"


def chosen(plan: Plan) -> str:
    """Return what is taken."""
    return f"{plan.method} on {plan.engine}" + ("" if plan.exports else ", without an export")


def others_considered(plan: Plan) -> list[Considered]:
    """Return what was considered beside what the steps say."""
    tried = {step.question for step in plan.steps}
    return [each for each in plan.considered if f"{each.option}?" not in tried]


def estimates(plan: Plan) -> dict[str, str]:
    """Return the numbers, by what they are."""
    taken, cache = plan.taken, plan.model.cache
    fit, speed = taken.fit, taken.speed
    assert fit is not None and speed is not None and taken.weights is not None, "only what fits is taken"
    windowed = f"in {cache.windowed} of {cache.layers} layers only for the last {cache.window or 0:,} tokens"
    numbers = {
        "weight files": f"{taken.weights:,} bytes",
        "cache per token": f"{cache.per_token:,} bytes" + (f", {windowed}" if cache.windowed else ""),
        "cache per sequence": f"{fit.cache / 1e6:,.1f} MB on each device",
        "sequences that fit": f"{taken.sequences:,}" + (f" in {taken.replicas} replicas" if taken.replicas > 1 else ""),
    }
    if speed.alone is not None:
        numbers["one sequence alone"] = f"about {_rounded(speed.alone)} tokens/s"
    if speed.total is not None and speed.sequences > 1:
        several = f"about {_rounded(speed.total)} tokens/s in all"
        numbers[f"{speed.sequences} sequences together"] = several + (" per replica" if taken.replicas > 1 else "")
    if speed.limit is not None:
        numbers["limit by bandwidth"] = f"{_rounded(speed.limit)} tokens/s for one sequence"
    numbers["speed known from"] = speed.basis
    return numbers


def _rounded(value: float) -> str:
    """Return two digits: an estimate has no more."""
    return f"{float(f'{value:.2g}'):,.10g}"
