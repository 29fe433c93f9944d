"""Artifacts: what an engine can load, made from a source, checked, described and put in place whole."""

from tuneserve.artifacts._export import ExportProgress, ExportResult, export
from tuneserve.artifacts._manifest import MANIFEST_FILE, read_manifest
from tuneserve.artifacts._methods import METHODS
from tuneserve.artifacts._plan import ExportPlan
from tuneserve.artifacts._planning import plan_export
from tuneserve.artifacts._saving import SavesArtifacts
from tuneserve.artifacts._size import parse_size

__all__ = [
    "MANIFEST_FILE",
    "METHODS",
    "ExportPlan",
    "ExportProgress",
    "ExportResult",
    "SavesArtifacts",
    "export",
    "parse_size",
    "plan_export",
    "read_manifest",
]
