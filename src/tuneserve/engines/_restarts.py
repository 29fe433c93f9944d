"""How often, and how soon, a dead engine is started again."""

import time
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Restarts:
    """A dead engine is started again after ``first_delay`` seconds, doubled each time up to ``longest_delay``.

    After ``attempts`` deaths within ``within`` seconds it stays down.
    """

    first_delay: float = 1.0
    longest_delay: float = 30.0
    attempts: int = 5
    within: float = 600.0


@dataclass
class Deaths:
    """The deaths of one engine that still count."""

    policy: Restarts
    _moments: list[float] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._moments)

    def note(self) -> float | None:
        """Count one more, now; return after how many seconds the engine is started again, None if it stays down."""
        now = time.monotonic()
        self._moments = [*(moment for moment in self._moments if now - moment < self.policy.within), now]
        if self.count > self.policy.attempts:
            return None
        doubled: float = self.policy.first_delay * 2.0 ** (self.count - 1)
        return min(self.policy.longest_delay, doubled)
