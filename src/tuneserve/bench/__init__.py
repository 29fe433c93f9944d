"""The load generator: closed-loop load on an endpoint or a source, and what changed between two measurements."""

from tuneserve.bench._compare import Change, compare
from tuneserve.bench._file import read_results, write_result
from tuneserve.bench._measure import Target, Workload, measure
from tuneserve.bench._result import Percentiles, RunResult, Timed, summarise
from tuneserve.bench._server import ServerTarget

__all__ = [
    "Change",
    "Percentiles",
    "RunResult",
    "ServerTarget",
    "Target",
    "Timed",
    "Workload",
    "compare",
    "measure",
    "read_results",
    "summarise",
    "write_result",
]
