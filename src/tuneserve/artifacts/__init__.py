"""Artifacts: what an engine can load, made from a source, checked, described and put in place whole."""

from tuneserve.artifacts._export import METHODS, ExportProgress, ExportResult, export, plan_export
from tuneserve.artifacts._manifest import MANIFEST_FILE, read_manifest
from tuneserve.artifacts._plan import ExportPlan

__all__ = [
    "MANIFEST_FILE",
    "METHODS",
    "ExportPlan",
    "ExportProgress",
    "ExportResult",
    "export",
    "plan_export",
    "read_manifest",
]
