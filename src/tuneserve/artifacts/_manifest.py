"""``tuneserve.json``: what an artifact was made from, by what, and how it was checked."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tuneserve._version import __version__
from tuneserve.artifacts._plan import ExportPlan
from tuneserve.checkpoint import ALGORITHM
from tuneserve.parity import ParityReport
from tuneserve.sources import read_config

MANIFEST_FILE = "tuneserve.json"
FORMAT = 1
_LIBRARIES = ("torch", "transformers", "peft", "safetensors")


def manifest(
    plan: ExportPlan,
    method: str,
    read: Mapping[Path, str],
    written: Mapping[str, str],
    parity: ParityReport | None,
    seconds: float,
) -> dict[str, Any]:
    """Return the manifest of one artifact; everything outside ``run`` is the same for the same inputs.

    Args:
        read, written: the hash of every file read, and of the artifact's files by name.
    """
    source = plan.source
    by_directory = {
        directory: {path.name: digest for path, digest in read.items() if path.parent == directory}
        for directory in plan.adapter_dirs
    }
    adapters = [
        {**described, "files": by_directory[directory]}
        for directory, described in zip(plan.adapter_dirs, plan.adapters, strict=True)
    ]
    base_files = {path.name: digest for path, digest in read.items() if path.parent not in by_directory}
    return {
        "format": FORMAT,
        "method": method,
        "name": source.name,
        "base": {
            "name": source.base_name or source.name,
            "revision": _revision(source.model_dir),
            "precision": source.base_precision,
            "files": base_files,
        },
        "adapters": adapters,
        "combination": asdict(plan.blend.combination) if plan.blend else None,
        "merged_tensors": len(plan.model.changed),
        "hash": ALGORITHM,
        "files": dict(written),
        "parity": parity.to_dict() if parity else None,
        "libraries": {"tuneserve": __version__, **{name: version(name) for name in _LIBRARIES}},
        "run": {
            "source": source.source,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            "fingerprint": plan.fingerprint,
        },
    }


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """Return the manifest of the artifact in ``directory``, None where it is not one of ours.

    Raises:
        SourceError: the file is not a JSON object.
    """
    path = directory / MANIFEST_FILE
    return read_config(path) if path.is_file() else None


def _revision(directory: Path) -> str | None:
    """Return the commit of a snapshot in the hub's cache, whose layout is ``snapshots/COMMIT``."""
    resolved = directory.resolve()
    return resolved.name if resolved.parent.name == "snapshots" else None
