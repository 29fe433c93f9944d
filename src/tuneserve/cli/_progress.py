"""The progress of an export: a bar on a terminal, plain lines elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from tuneserve.artifacts import ExportPlan, ExportProgress


class TerminalProgress(ExportProgress):
    """Shows bytes, speed and remaining time while the weights are written."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)

    def planned(self, plan: ExportPlan) -> None:
        """Show what is about to be written."""
        if plan.source.reason:
            self._line(plan.source.reason)
        self._line(f"merging {len(plan.model.changed)} tensors of {plan.source.name} ({plan.pass_bytes / 1e6:,.0f} MB)")
        self._task = self._bar.add_task("writing", total=plan.pass_bytes)

    def wrote(self, nbytes: int) -> None:
        """Move the bar."""
        self._bar.advance(self._task, nbytes)

    def calibrating(self, text: str) -> None:
        """Say how far calibration is."""
        self._line(text)

    def verifying(self, method: str) -> None:
        """Say that a check begins."""
        self._line(f"comparing {method} with the unmerged model")

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()
