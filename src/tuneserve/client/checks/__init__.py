"""Is a server OpenAI-compatible: one check per feature."""

from tuneserve.client.checks._result import CheckResult, Outcome
from tuneserve.client.checks._run import REACHABLE, run_checks

__all__ = ["REACHABLE", "CheckResult", "Outcome", "run_checks"]
