"""The load generator: closed and open load on an endpoint or a source, and what changed between two measurements."""

from tuneserve.bench._compare import Change, compare
from tuneserve.bench._file import read_results, write_result
from tuneserve.bench._html import html_report
from tuneserve.bench._load import Load, Prompt, Target
from tuneserve.bench._measure import Progress, measure
from tuneserve.bench._result import Level, Percentiles, RunResult, Timed
from tuneserve.bench._server import ServerTarget
from tuneserve.bench._summary import summarise
from tuneserve.bench._workload import Workload

__all__ = [
    "Change",
    "Level",
    "Load",
    "Percentiles",
    "Progress",
    "Prompt",
    "RunResult",
    "ServerTarget",
    "Target",
    "Timed",
    "Workload",
    "compare",
    "html_report",
    "measure",
    "read_results",
    "summarise",
    "write_result",
]
