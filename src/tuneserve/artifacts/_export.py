"""The export: plan, execute, check, describe, and only then put in place."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from tuneserve import parity
from tuneserve.adapters import open_adapter
from tuneserve.artifacts._execute import execute, sha256
from tuneserve.artifacts._manifest import MANIFEST_FILE, manifest
from tuneserve.artifacts._plan import ExportPlan, plan_merged_16bit
from tuneserve.checkpoint import AtomicDirectory, open_checkpoint, write_json
from tuneserve.errors import InputError, OutputError, ParityError
from tuneserve.parity import ParityReport
from tuneserve.sources import ResolvedSource, read_config, resolve

METHODS = ("merged_16bit",)
_SPARE_BYTES = 50_000_000


class ExportProgress:
    """Is told how far an export is; override what is of interest."""

    def planned(self, plan: ExportPlan) -> None:
        """The plan is made and writing begins."""

    def wrote(self, nbytes: int) -> None:
        """A tensor of ``nbytes`` was written."""

    def verifying(self) -> None:
        """The weights are written and their check begins."""


@dataclass(frozen=True)
class ExportResult:
    """A finished artifact; ``parity`` is None where the check was left out."""

    directory: Path
    plan: ExportPlan
    parity: ParityReport | None
    seconds: float


def export(
    source: str | Path | ResolvedSource,
    out: str | Path,
    *,
    method: str = "merged_16bit",
    base: str | Path | None = None,
    verify: bool = True,
    progress: ExportProgress | None = None,
) -> ExportResult:
    """Make an artifact of ``source`` in the new directory ``out``.

    The weights pass through tensor by tensor: the delta is computed and added in float32 and the sum rounded once. The
    result is compared with the unmerged reference before it takes its name. On any failure nothing is left behind.

    Args:
        source: what to export; see :func:`tuneserve.sources.resolve`.
        out: a directory that does not exist yet.
        method: one of ``METHODS``.
        base: what to use instead of the base that the adapter names.
        verify: whether to compare the result with the reference.
        progress: is told how far the export is.

    Raises:
        InputError: the source, method or output cannot be used.
        ParityError: the result is not the model that was trained.
    """
    started = time.monotonic()
    plan = plan_export(source, method=method, base=base)
    progress = progress or ExportProgress()
    progress.planned(plan)
    with AtomicDirectory(Path(out)) as output:
        _require_space(output.path, plan)
        read, written = execute(plan, output.path, progress.wrote)
        report = None
        if verify:
            progress.verifying()
            report = _checked(output.path, plan.source)
        directory = plan.source.adapter_dir
        adapter_files = plan.adapter.checkpoint.files if plan.adapter else ()
        adapter_hashes = {path.name: sha256(path) for path in adapter_files}
        if directory is not None:
            adapter_hashes["adapter_config.json"] = sha256(directory / "adapter_config.json")
        seconds = time.monotonic() - started
        described = manifest(plan, method, read, written, adapter_hashes, report, seconds)
        write_json(output.path / MANIFEST_FILE, described)
    return ExportResult(output.target, plan, report, seconds)


def plan_export(
    source: str | Path | ResolvedSource, *, method: str = "merged_16bit", base: str | Path | None = None
) -> ExportPlan:
    """Decide what an export will read and write, from headers and configurations alone.

    Raises:
        InputError: as :func:`export`, except for the output.
    """
    if method not in METHODS:
        raise InputError(f"the method {method!r} is not supported; choose one of {', '.join(METHODS)}.")
    resolved = source if isinstance(source, ResolvedSource) else resolve(source, base=base)
    adapter = open_adapter(resolved.adapter_dir) if resolved.adapter_dir else None
    checkpoint = open_checkpoint(resolved.model_dir)
    return plan_merged_16bit(resolved, checkpoint, adapter, read_config(resolved.model_dir / "config.json"))


def _checked(directory: Path, source: ResolvedSource) -> ParityReport:
    report = parity.verify(directory, source)
    if not report.passed:
        raise ParityError(
            f"the merged model is not the one that was trained ({'; '.join(report.failures)}), so nothing was written; "
            "please report this with the adapter's configuration."
        )
    return report


def _require_space(directory: Path, plan: ExportPlan) -> None:
    free = shutil.disk_usage(directory).free
    needed = plan.weight_bytes + _SPARE_BYTES
    if free < needed:
        raise OutputError(
            f"the output needs {needed / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free; "
            "free some space or choose an output on another disk."
        )
