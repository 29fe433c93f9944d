"""``tuneserve.json``: what an artifact was made from, by what, and how it was checked."""

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tuneserve._version import __version__
from tuneserve.artifacts._plan import ExportPlan
from tuneserve.parity import ParityReport
from tuneserve.sources import read_config

MANIFEST_FILE = "tuneserve.json"
FORMAT = 1


def manifest(
    plan: ExportPlan,
    method: str,
    read: Mapping[str, str],
    written: Mapping[str, str],
    adapter_hashes: Mapping[str, str],
    parity: ParityReport | None,
    seconds: float,
) -> dict[str, Any]:
    """Return the manifest; everything outside ``run`` is the same for the same inputs."""
    source = plan.source
    return {
        "format": FORMAT,
        "method": method,
        "name": source.name,
        "base": {"name": source.base_name or source.name, "files": dict(read)},
        "adapter": {"name": source.name, "files": dict(adapter_hashes)} if source.adapter_dir else None,
        "merged_tensors": plan.merged,
        "files": dict(written),
        "parity": parity.to_dict() if parity else None,
        "run": {
            "source": source.source,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            "tuneserve": __version__,
            **{name: version(name) for name in ("torch", "transformers", "peft", "safetensors")},
        },
    }


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """Return the manifest of the artifact in ``directory``, None where it is not one of ours.

    Raises:
        SourceError: the file is not a JSON object.
    """
    path = directory / MANIFEST_FILE
    return read_config(path) if path.is_file() else None
