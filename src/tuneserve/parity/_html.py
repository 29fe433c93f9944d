"""A parity report as a page: what was measured beside its limits, and where the two models part."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean, median

from tuneserve.parity._report import ParityReport, Place
from tuneserve.report import Html, Line, Series, element, joined, page, plot, section, table

_WORST = 5
# Shares of the largest KL that is still the same model, from which a token is shaded deeper.
_SHADES = (1e-3, 1e-2, 1e-1, 1.0)
_LEAST = 1e-9


def html_report(report: ParityReport, candidate: str, reference: str) -> str:
    """Return a page that says how far ``candidate`` is from ``reference``, and where most."""
    verdict = "The same model" if report.passed else "Not the same model"
    lead = (
        f"{candidate} against {reference}, as {report.method}: {report.prompts} prompts, {report.positions} positions"
    )
    sections = [_tiles(report)]
    if report.failures:
        told = [*(f"What broke: {step}" for step in report.diagnosis), *report.failures]
        sections.append(section("What is wrong", element("ul", *(element("li", line) for line in told))))
    sections.append(section("Measured", _measured(report), element("p", _source(report), class_="note")))
    if report.places:
        sections.append(section("Where they part", element("div", *_plots(report), class_="plots")))
        sections.append(section("The worst prompts", *_worst(report)))
    if report.text:
        rows = [[check.name, check.detail, _verdict(check.passed)] for check in report.text]
        sections.append(section("The text around the model", table(["check", "found", ""], rows, numbers=False)))
    if report.notes:
        sections.append(section("Notes", element("ul", *(element("li", note) for note in report.notes))))
    return page(verdict, lead, sections)


def _source(report: ParityReport) -> str:
    bound = " Of a server only the likeliest tokens are known, so its divergences are lower bounds."
    return f"The limits: {report.thresholds.reason}.{bound if report.lower_bound else ''}"


def _tiles(report: ParityReport) -> Html:
    kind = "good" if report.passed else "bad"
    tiles = [
        (f"{report.mean_kl:.2e}", "mean KL, in nats"),
        (f"{report.agreement:.2%}", "rank the same token first"),
        ("passed" if report.passed else f"{len(report.failures)} failed", "of all checks"),
    ]
    if report.perplexity_change is not None:
        tiles.insert(2, (f"{report.perplexity_change:+.2%}", "perplexity"))
    if report.modules is not None and report.modules.delta_share is not None:
        tiles.insert(2, (f"{report.modules.delta_share:.2f}", "of the adapter's delta"))
    shown = [element("div", element("b", value, class_=kind), element("span", name)) for value, name in tiles]
    return element("div", *shown, class_="tiles")


def _verdict(passed: bool) -> Html:
    return element("span", "as it should be" if passed else "wrong", class_="good" if passed else "bad")


def _measured(report: ParityReport) -> Html:
    limits = report.thresholds
    # Written so that NaN is over its limit.
    rows = [
        ("mean KL", f"{report.mean_kl:.2e}", f"≤ {limits.mean_kl:.3g}", report.mean_kl <= limits.mean_kl),
        ("p99 KL", f"{report.p99_kl:.2e}", f"≤ {limits.p99_kl:.3g}", report.p99_kl <= limits.p99_kl),
        ("max KL", f"{report.max_kl:.2e}", f"≤ {limits.max_kl:.3g}", report.max_kl <= limits.max_kl),
        (
            f"top-1 agreement ({report.ties} near-ties)", f"{report.agreement:.2%}", f"≥ {limits.agreement:.1%}",
            report.agreement >= limits.agreement,
        ),
    ]  # fmt: skip
    if (change := report.perplexity_change) is not None:
        rows.append(
            (f"perplexity, from {report.perplexity:.4g}", f"{change:+.2%}", f"± {limits.perplexity:.0%}",
             abs(change) <= limits.perplexity)
        )  # fmt: skip
    if (modules := report.modules) is not None:
        within = not (modules.skipped or modules.exceeded or modules.changed)
        rows.append(
            (f"worst of {modules.compared} weights, {modules.worst}", f"{modules.worst_error:.2f} × its format's error",
             f"≤ {limits.weight_error:g}", within)
        )  # fmt: skip
        if modules.delta_share is not None:
            complete = not (modules.skipped or modules.exceeded)
            share = f"{modules.delta_share:.2f}"
            rows.append((f"share of the delta, {modules.count} modules", share, "½ to 1½ in each", complete))
    headings = ["KL in nats", "measured", "limit", ""]
    return table(headings, [[name, found, limit, _verdict(passed)] for name, found, limit, passed in rows])


def _plots(report: ParityReport) -> Iterator[Html]:
    limits = report.thresholds
    columns: dict[int, list[float]] = defaultdict(list)
    for place in report.places:
        columns[place.position].append(_shown(place.kl))
    each = [(position + 1, kl) for position, column in columns.items() for kl in column]
    middle = [(position + 1, median(column)) for position, column in columns.items()]
    yield plot(
        "By position in the prompt",
        [Series("each prompt", each, 0, joined=False), Series("median", middle, 1)],
        x="token", y="KL, nats", log_y=True, lines=[Line("limit of the maximum", limits.max_kl)],
        note="What grows along a prompt points at positions (rotary embeddings, windows); what is the same "
        "everywhere, at weights.",
    )  # fmt: skip
    ordered = sorted((_shown(place.kl) for place in report.places), reverse=True)
    shares = [(100 * (index + 1) / len(ordered), kl) for index, kl in enumerate(ordered)]
    yield plot(
        "How many positions differ how much", [Series("positions", shares, 0)],
        x="of positions, % (the worst first)", y="KL, nats", log_y=True, lines=[Line("limit of p99", limits.p99_kl)],
        note="A few bad positions are rare tokens or near-ties; many are a model that changed.",
    )  # fmt: skip


def _shown(kl: float) -> float:
    """Return the KL, or the least that is drawn; NaN stays and is not."""
    return max(kl, _LEAST)


def _worst(report: ParityReport) -> Iterator[Html]:
    prompts: dict[int, list[Place]] = defaultdict(list)
    for place in report.places:
        prompts[place.prompt].append(place)
    worst = sorted(prompts.values(), key=lambda places: -fmean(place.kl for place in places))[:_WORST]
    yield element("p", "The deeper the shade, the further apart the two are on what follows the token.", class_="note")
    for places in worst:
        mean, most = fmean(place.kl for place in places), max(places, key=lambda place: place.kl)
        head = f"prompt {places[0].prompt + 1}: mean {mean:.2e}, at most {most.kl:.2e} after token {most.position + 1}"
        yield element("div", element("b", head), _shaded(places, report.thresholds.max_kl))


def _shaded(places: Sequence[Place], limit: float) -> Html:
    found = []
    for place in places:
        depth = sum(place.kl > share * limit for share in _SHADES)
        said = f"{place.kl:.2e} nats after token {place.position + 1}"
        found.append(element("span", place.token, title=said, **({"class_": f"h{depth}"} if depth else {})))
    return element("div", joined(found), class_="tokens")
