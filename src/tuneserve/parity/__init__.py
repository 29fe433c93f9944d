"""How close a candidate's token probabilities are to the reference's, measured independently of what made it."""

from tuneserve.parity._files import FilesReport, verify_files
from tuneserve.parity._html import html_report
from tuneserve.parity._report import ModuleParity, ParityReport, Place, TextCheck
from tuneserve.parity._shell import quiet, unloadable
from tuneserve.parity._thresholds import Thresholds, thresholds_for
from tuneserve.parity._verify import verify

__all__ = [
    "FilesReport",
    "ModuleParity",
    "ParityReport",
    "Place",
    "TextCheck",
    "Thresholds",
    "html_report",
    "quiet",
    "thresholds_for",
    "unloadable",
    "verify",
    "verify_files",
]
