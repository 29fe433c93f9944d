"""A plan as a page: what fills each device's memory, and the steps that led there."""

from collections.abc import Iterator

from tuneserve.planner._options import Option
from tuneserve.planner._plan import Plan
from tuneserve.planner._text import asked, chosen, estimates, others_considered
from tuneserve.report import Bar, Html, Part, bars, element, joined, page, section, table


def html_report(plan: Plan) -> str:
    """Return a page with the choice, its memory beside that of the other options, and the commands."""
    sections = [
        _tiles(plan),
        section("Memory", _memory(plan)),
        section("Why", _steps(plan)),
        section("Estimates", table(["", ""], list(estimates(plan).items()), numbers=False)),
        section("Commands", element("pre", "\n".join(plan.commands.shell))),
    ]
    if plan.commands.python:
        sections.append(section("In Python", element("pre", "\n".join(plan.commands.python))))
    if others := others_considered(plan):
        rows = [[each.option, each.why_not] for each in others]
        sections.append(section("Also considered", table(["option", "why not"], rows, numbers=False)))
    if notes := (*plan.machine.notes, *plan.commands.notes):
        sections.append(section("Notes", element("ul", *(element("li", f"{note}.") for note in notes))))
    return page(chosen(plan), asked(plan), sections)


def _tiles(plan: Plan) -> Html:
    taken = plan.taken
    assert taken.fit is not None and taken.speed is not None, "only what fits is taken"
    tiles = [(f"{taken.fit.weights / 1e9:,.2f} GB", "weights on each device")]
    tiles.append((f"{taken.sequences:,}", "sequences fit at full length"))
    if taken.speed.alone is not None:
        tiles.append((f"{taken.speed.alone:,.0f} tokens/s", "one sequence alone, about"))
    if taken.speed.total is not None and taken.speed.sequences > 1:
        each = " per replica" if taken.replicas > 1 else ""
        tiles.append((f"{taken.speed.total:,.0f} tokens/s", f"{taken.speed.sequences} together{each}, about"))
    if taken.replicas > 1:
        tiles.append((f"{taken.replicas}", "replicas"))
    shown = (element("div", element("b", value), element("span", name)) for value, name in tiles)
    return element("div", *shown, class_="tiles")


def _memory(plan: Plan) -> Html:
    fit = plan.taken.fit
    assert fit is not None, "only what fits is taken"
    where = "each GPU" if plan.machine.gpus else "the machine"
    others = [option for option in plan.weighed if option is not plan.taken]
    found = [_bar(option, plan) for option in (plan.taken, *others)]
    return bars(
        f"The {fit.memory / 1e9:,.0f} GB of {where}",
        found,
        limit=fit.usable,
        limit_name="what an engine uses at most",
        whole=fit.memory,
        note=f"The cache is that of up to {plan.wish.concurrency:,} sequences of {plan.wish.context:,} tokens, "
        "of as many as fit.",
    )


def _bar(option: Option, plan: Plan) -> Bar:
    fit = option.fit
    assert fit is not None
    wished = -(-plan.wish.concurrency // option.replicas)
    held = max(1, min(wished, fit.sequences))
    parts = {"weights": fit.weights, "the engine itself": fit.overhead, "cache": held * fit.cache}
    if option is plan.taken:
        verdict = "taken"
    elif not option.sequences:
        verdict = "does not fit"
    else:
        verdict = f"fits {option.sequences:,} sequence{'s' if option.sequences != 1 else ''}"
    return Bar(option.name, [Part(name, value, f"{value / 1e9:,.2f} GB") for name, value in parts.items()], verdict)


def _steps(plan: Plan) -> Html:
    def shown() -> Iterator[Html]:
        for step in plan.steps:
            said = joined([f"{step.question} ", element("b", step.answer)])
            yield element("li", said, element("p", step.because))

    return element("ol", *shown(), class_="steps")
