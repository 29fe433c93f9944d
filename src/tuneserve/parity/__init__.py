"""How close a candidate's token probabilities are to the reference's, measured independently of what made it."""

from tuneserve.parity._files import FilesReport, verify_files
from tuneserve.parity._report import ModuleParity, ParityReport, TextCheck
from tuneserve.parity._shell import quiet
from tuneserve.parity._thresholds import Thresholds, thresholds_for
from tuneserve.parity._verify import verify

__all__ = [
    "FilesReport",
    "ModuleParity",
    "ParityReport",
    "TextCheck",
    "Thresholds",
    "quiet",
    "thresholds_for",
    "verify",
    "verify_files",
]
