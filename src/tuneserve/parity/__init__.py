"""How close a candidate's token probabilities are to the reference's, measured independently of what made it."""

from tuneserve.parity._report import ModuleParity, ParityReport, Thresholds
from tuneserve.parity._verify import verify

__all__ = ["ModuleParity", "ParityReport", "Thresholds", "verify"]
