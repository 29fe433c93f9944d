"""The files of an artifact against the hashes in its manifest."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuneserve.checkpoint import file_digest
from tuneserve.errors import SourceError
from tuneserve.sources import read_config

MANIFEST = "tuneserve.json"


@dataclass(frozen=True)
class FileCheck:
    """One file of a manifest: ``state`` is ``same``, ``changed`` or ``missing``."""

    name: str
    state: str


@dataclass(frozen=True)
class FilesReport:
    """The files that a manifest names, each with what became of it."""

    directory: Path
    files: tuple[FileCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every file is as it was written."""
        return all(file.state == "same" for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values, with the verdict."""
        return {"files": [asdict(file) for file in self.files], "passed": self.passed}


def verify_files(directory: Path) -> FilesReport:
    """Hash the files that the manifest in ``directory`` names, and compare.

    Raises:
        SourceError: there is no manifest, or it names no files, or one outside the directory.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise SourceError(
            f"{directory} has no {MANIFEST}, so there are no hashes to check; name its reference with --against."
        )
    files = read_config(path).get("files")
    if not isinstance(files, dict) or not files:
        raise SourceError(f"{path} lists no files; export the model again.")
    return FilesReport(directory, tuple(_checked(directory, files)))


def _checked(directory: Path, files: dict[str, Any]) -> Iterator[FileCheck]:
    home = directory.resolve()
    for name, expected in sorted(files.items()):
        path = directory / name
        if "\0" in name or not path.resolve().is_relative_to(home):
            raise SourceError(f"{directory / MANIFEST} names {name!r}, which is outside it; export the model again.")
        if not path.is_file():
            yield FileCheck(name, "missing")
            continue
        yield FileCheck(name, "same" if file_digest(path) == expected else "changed")
