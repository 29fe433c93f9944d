"""Artifacts: what an engine can load, made from a source, checked, described and put in place whole."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tuneserve.artifacts._safetensors import DEFAULT_SHARD_BYTES, SafetensorsFormat
from tuneserve.artifacts._size import parse_size

if TYPE_CHECKING:
    from tuneserve.artifacts._export import ExportProgress, ExportResult, export
    from tuneserve.artifacts._manifest import MANIFEST_FILE, read_manifest
    from tuneserve.artifacts._methods import METHODS
    from tuneserve.artifacts._plan import ExportPlan
    from tuneserve.artifacts._planning import plan_export
    from tuneserve.artifacts._saving import SavesArtifacts

__all__ = [
    "DEFAULT_SHARD_BYTES",
    "MANIFEST_FILE",
    "METHODS",
    "ExportPlan",
    "ExportProgress",
    "ExportResult",
    "SafetensorsFormat",
    "SavesArtifacts",
    "export",
    "parse_size",
    "plan_export",
    "read_manifest",
]

# Imported when first asked for, because they need torch, and the sizes of artifacts do not.
_HOMES = {
    "MANIFEST_FILE": "_manifest",
    "METHODS": "_methods",
    "ExportPlan": "_plan",
    "ExportProgress": "_export",
    "ExportResult": "_export",
    "SavesArtifacts": "_saving",
    "export": "_export",
    "plan_export": "_planning",
    "read_manifest": "_manifest",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
