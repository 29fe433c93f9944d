"""What a parity check measured, and whether that is good enough."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from tuneserve.parity._thresholds import Thresholds

_LISTED = 3


@dataclass(frozen=True)
class ModuleParity:
    """The weights compared one by one; errors are in units of what the candidate's format explains.

    ``count`` adapted modules among ``compared`` weights. ``delta_share`` is the median share of the adapter's deltas
    that is in the candidate, None without deltas. ``skipped`` have less than half of theirs and ``exceeded`` more than
    one and a half; ``changed`` are weights that are further off than the format explains. ``unmerged`` could not be
    compared, because PEFT has no merge for them.
    """

    count: int
    compared: int
    worst: str
    worst_error: float
    delta_share: float | None
    skipped: tuple[str, ...]
    exceeded: tuple[str, ...]
    changed: tuple[str, ...]
    unmerged: tuple[str, ...]


@dataclass(frozen=True)
class TextCheck:
    """One thing that must be right in the text around the model; ``step`` is what broke it where it is not."""

    name: str
    step: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Place:
    """KL(reference ‖ candidate) in nats of what follows the token at ``position`` of the probe ``prompt``.

    ``token`` is the token's text, or its id where there is no tokenizer.
    """

    prompt: int
    position: int
    token: str
    kl: float


@dataclass(frozen=True)
class ParityReport:
    """A candidate beside its reference over all positions of the probe prompts.

    ``mean_kl``, ``p99_kl`` and ``max_kl`` are KL(reference ‖ candidate) in nats, ``lower_bound`` if only the likeliest
    tokens were to be had. ``agreement`` is the share of positions where both rank the same token first, or where the
    reference holds the two for nearly tied (``ties`` counts those). ``perplexity`` is the reference's on the probe
    text, None where that is random tokens. ``modules`` is None where the two sides do not share their module
    structure. ``config`` lists what differs in what is computed from the configurations. ``diagnosis`` says which step
    broke, empty if none did. ``places`` has each position by itself.
    """

    method: str
    prompts: int
    positions: int
    mean_kl: float
    p99_kl: float
    max_kl: float
    lower_bound: bool
    agreement: float
    ties: int
    perplexity: float | None
    candidate_perplexity: float | None
    modules: ModuleParity | None
    config: tuple[str, ...]
    text: tuple[TextCheck, ...]
    diagnosis: tuple[str, ...]
    notes: tuple[str, ...]
    thresholds: Thresholds
    places: tuple[Place, ...] = ()

    @property
    def perplexity_change(self) -> float | None:
        """The candidate's perplexity relative to the reference's, less one."""
        if self.perplexity is None or self.candidate_perplexity is None:
            return None
        return self.candidate_perplexity / self.perplexity - 1

    @property
    def probabilities_differ(self) -> bool:
        """Whether a limit on the probabilities is passed."""
        return bool(_over_limits(self))

    @property
    def failures(self) -> list[str]:
        """Every check that is not passed, in words; empty means that the candidate is the same model."""
        found = [*_over_limits(self), *_weight_failures(self.modules, self.thresholds)]
        if self.config:
            found.append(f"what is computed from config.json differs: {_listed(self.config)}")
        return found + [f"{check.name}: {check.detail}" for check in self.text if not check.passed]

    @property
    def passed(self) -> bool:
        """Whether every check is passed."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return all but the places as JSON-ready values, with the verdict; the same for the same inputs."""
        fields = asdict(replace(self, places=()))
        del fields["places"]
        return {
            **fields,
            "perplexity_change": self.perplexity_change,
            "passed": self.passed,
            "failures": self.failures,
        }


def _over_limits(report: ParityReport) -> list[str]:
    limits = report.thresholds
    measured = (
        ("mean KL", report.mean_kl, limits.mean_kl),
        ("p99 KL", report.p99_kl, limits.p99_kl),
        ("max KL", report.max_kl, limits.max_kl),
    )
    # Written so that NaN fails.
    found = [f"{name} {value:.2g} is over {limit:.2g}" for name, value, limit in measured if not value <= limit]
    if not report.agreement >= limits.agreement:
        found.append(f"top-1 agreement {report.agreement:.1%} is under {limits.agreement:.1%}")
    change = report.perplexity_change
    if change is not None and not abs(change) <= limits.perplexity:
        found.append(f"perplexity changes by {change:+.1%}, over {limits.perplexity:.1%}")
    return found


def _weight_failures(modules: ModuleParity | None, limits: Thresholds) -> list[str]:
    if modules is None:
        return []
    found = []
    if modules.skipped:
        found.append(f"the adapter's delta is missing from {_listed(modules.skipped)}")
    if modules.exceeded:
        found.append(f"the adapter's delta is too large in {_listed(modules.exceeded)}")
    others = [name for name in modules.changed if name not in (*modules.skipped, *modules.exceeded)]
    if others:
        found.append(
            f"{_listed(tuple(others))} differ by more than {limits.weight_error:g} times what the format explains "
            f"(at worst {modules.worst_error:.1f} times)"
        )
    return found


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
