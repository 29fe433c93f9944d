"""What a parity check measured, and whether that is good enough."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Thresholds:
    """Limits for a merge into 16 bits, where rounding the weights once is the only difference allowed.

    ``mean_kl`` and ``max_kl`` are in nats. ``module_error`` is in units of the error that one rounding explains: a
    right merge measures about 1 whatever the model, a skipped or doubled delta many times that.
    """

    mean_kl: float = 2e-3
    max_kl: float = 0.5
    agreement: float = 0.98
    module_error: float = 2.0


@dataclass(frozen=True)
class ModuleParity:
    """The adapted modules compared one by one; errors are in units of the expected rounding error."""

    count: int
    worst: str
    worst_error: float


@dataclass(frozen=True)
class ParityReport:
    """Divergence of a candidate from its reference over all positions of the probe prompts.

    ``mean_kl`` and ``max_kl`` are KL(reference ‖ candidate) in nats. ``agreement`` is the share of positions where both
    rank the same token first, or where the reference holds the two for nearly tied (``ties`` counts those). ``modules``
    is None where the two sides do not share their module structure or the reference has no adapter.
    """

    prompts: int
    positions: int
    mean_kl: float
    max_kl: float
    agreement: float
    ties: int
    modules: ModuleParity | None
    thresholds: Thresholds

    @property
    def failures(self) -> list[str]:
        """Every threshold that is not met, in words; empty means that the candidate is the same model."""
        limits = self.thresholds
        found = []
        # Written so that NaN fails.
        if not self.mean_kl <= limits.mean_kl:
            found.append(f"mean KL {self.mean_kl:.2g} is over {limits.mean_kl:g}")
        if not self.max_kl <= limits.max_kl:
            found.append(f"max KL {self.max_kl:.2g} is over {limits.max_kl:g}")
        if not self.agreement >= limits.agreement:
            found.append(f"top-1 agreement {self.agreement:.1%} is under {limits.agreement:.1%}")
        if self.modules and not self.modules.worst_error <= limits.module_error:
            found.append(
                f"{self.modules.worst} is {self.modules.worst_error:.1f} times further off than rounding explains"
            )
        return found

    @property
    def passed(self) -> bool:
        """Whether every threshold is met."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values, with the verdict."""
        return {**asdict(self), "passed": self.passed, "failures": self.failures}
