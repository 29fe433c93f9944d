"""How far a measurement is: a bar on a terminal, nothing elsewhere, where each level's line says it."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from tuneserve.bench import Progress


class LoadProgress:
    """Shows level, run and how many requests have ended; ``runs`` is how many a level has."""

    def __init__(self, console: Console, runs: int) -> None:
        self._runs = runs
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("requests"))
        self._bars = Bars(*columns, TimeElapsedColumn(), console=console, transient=True)
        self._shown = self._bars.add_task("warming up", total=None)
        self._terminal = console.is_terminal

    def ran(self, progress: Progress) -> None:
        """Move the bar; on any thread."""
        said = f"{progress.level}, run {progress.run + 1} of {self._runs}"
        self._bars.update(self._shown, description=said, completed=progress.done, total=progress.requests)

    def __enter__(self) -> Self:
        if self._terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal:
            self._bars.stop()
