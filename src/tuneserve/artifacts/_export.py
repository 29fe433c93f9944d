"""The export: plan, execute, check, describe, and only then put in place."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneserve import parity
from tuneserve.artifacts._execute import execute
from tuneserve.artifacts._journal import Journal
from tuneserve.artifacts._manifest import MANIFEST_FILE, manifest, read_manifest
from tuneserve.artifacts._plan import MERGED, ExportPlan
from tuneserve.artifacts._planning import plan_export
from tuneserve.artifacts._reference import reference
from tuneserve.artifacts.calibrated import run_calibrated
from tuneserve.checkpoint import AtomicDirectory, check_absent, file_digest, write_json
from tuneserve.errors import OutputError, ParityError
from tuneserve.parity import ParityReport
from tuneserve.sources import ResolvedSource

# Configuration, tokenizer, index and manifest of one artifact.
_SPARE_BYTES = 50_000_000


class ExportProgress:
    """Is told how far an export is; override what is of interest."""

    def planned(self, plan: ExportPlan) -> None:
        """The plan is made and writing begins."""

    def wrote(self, nbytes: int) -> None:
        """A merged tensor of ``nbytes`` went into all outputs."""

    def calibrating(self, text: str) -> None:
        """A method that calibrates has come as far as ``text`` says."""

    def verifying(self, method: str) -> None:
        """The artifact of ``method`` is written and its check begins."""


@dataclass(frozen=True)
class ExportResult:
    """Finished artifacts; ``parity`` has a report per method that was checked in this run."""

    directory: Path
    plan: ExportPlan
    parity: Mapping[str, ParityReport]
    seconds: float


def export(
    source: str | Path | ResolvedSource,
    out: str | Path,
    *,
    resume: bool = False,
    verify: bool = True,
    progress: ExportProgress | None = None,
    **options: Any,
) -> ExportResult:
    """Make an artifact of ``source`` in the new directory ``out``, or several in directories of it by method.

    The weights pass through once, tensor by tensor: the delta is computed and added in float32, the sum rounded once to
    16 bits, and that is quantised for each method. Each artifact is compared with the unmerged reference before ``out``
    takes its name. On any failure nothing is left behind.

    Args:
        source: what to export; see :func:`tuneserve.sources.resolve`.
        out: a directory that does not exist yet.
        resume: go on where a killed export into ``out`` was; a finished one of the same inputs is returned as it is.
        verify: whether to compare the results with the reference.
        progress: is told how far the export is.
        options: the method and all else that :func:`plan_export` takes.

    Raises:
        InputError: the source, an option or the output cannot be used.
        EngineError: what calibrates is not installed, or failed.
        ParityError: a result is not the model that was trained.
    """
    started = time.monotonic()
    if not resume:
        check_absent(Path(out).absolute())
    plan = plan_export(source, **options)
    progress = progress or ExportProgress()
    if resume and _is_finished(Path(out), plan):
        return ExportResult(Path(out).absolute(), plan, {}, time.monotonic() - started)
    reports: dict[str, ParityReport] = {}
    with AtomicDirectory(Path(out), resume=resume) as output, reference(plan) as against:
        _require_space(output.path, plan)
        progress.planned(plan)
        read, hashes = execute(plan, output.path, progress.wrote)
        for name, format_ in plan.formats.items():
            format_.write_side_files(plan.directory(output.path, name))
        if verify and plan.calibrated and MERGED not in plan.methods:
            # What is calibrated moves weights on purpose, so that a fault of the merge would not show there.
            progress.verifying(MERGED)
            _checked(plan.directory(output.path, MERGED), MERGED, against)
        for name in plan.methods:
            directory = plan.directory(output.path, name)
            facts = _calibrate(plan, output.path, name, progress) if name in plan.calibrated else {}
            candidate = plan.formats[name].candidate(directory) if name in plan.formats else directory
            if verify and candidate is not None:
                progress.verifying(name)
                reports[name] = _checked(candidate, name, against)
            written = hashes.get(name, {}) | _other_hashes(directory, hashes.get(name, {}))
            seconds = time.monotonic() - started
            described = manifest(plan, name, read, written, reports.get(name), seconds) | facts
            write_json(directory / MANIFEST_FILE, described)
        for leftover in (path for path in output.path.iterdir() if path.is_dir() and path.name.startswith(".")):
            shutil.rmtree(leftover)
        Journal(output.path, plan.fingerprint).remove()
    return ExportResult(output.target, plan, reports, time.monotonic() - started)


def _calibrate(plan: ExportPlan, root: Path, method: str, progress: ExportProgress) -> dict[str, Any]:
    """Make the artifact of a calibrated method from the merged model; return what its manifest says of that."""
    assert plan.calibrator is not None, "checked when it was planned"
    directory, scratch = plan.directory(root, method), root / ".calibrated"
    for leftover in {scratch, directory} - {root}:
        shutil.rmtree(leftover, ignore_errors=True)
    facts = run_calibrated(
        method,
        plan.directory(root, MERGED),
        scratch,
        plan.calibrator,
        max_shard_bytes=plan.max_shard_bytes,
        report=progress.calibrating,
    )
    directory.mkdir(exist_ok=True)
    for path in scratch.iterdir():
        path.rename(directory / path.name)
    return facts


def _is_finished(out: Path, plan: ExportPlan) -> bool:
    made = [read_manifest(plan.directory(out, name)) for name in plan.methods]
    runs = [found.get("run") if found else None for found in made]
    return all(isinstance(run, dict) and run.get("fingerprint") == plan.fingerprint for run in runs)


def _checked(candidate: Path, method: str, against: ResolvedSource) -> ParityReport:
    report = parity.verify(candidate, against, method=method)
    if not report.passed:
        broken = f"; what broke: {'; '.join(report.diagnosis)}" if report.diagnosis else ""
        coarse = all(step.startswith("quantisation") for step in report.diagnosis) and report.diagnosis
        remedy = "choose a method of more bits" if coarse else "please report this with the adapter's configuration"
        raise ParityError(
            f"the {method} model is not the one that was trained ({'; '.join(report.failures)}), so nothing was "
            f"written{broken}; {remedy}."
        )
    return report


def _require_space(directory: Path, plan: ExportPlan) -> None:
    free = shutil.disk_usage(directory).free
    # What a killed run has written is not needed again.
    present = sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())
    # Calibrated artifacts are smaller than the merged model that they are made from.
    calibrated = len(plan.calibrated) * plan.pass_bytes
    needed = sum(plan.output_bytes.values()) + calibrated + _SPARE_BYTES * len(plan.methods) - present
    if free < needed:
        raise OutputError(
            f"the output needs {needed / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free; "
            "free some space or choose an output on another disk."
        )


def _other_hashes(directory: Path, known: Mapping[str, str]) -> dict[str, str]:
    files = sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))
    return {path.name: file_digest(path) for path in files if path.name not in (*known, MANIFEST_FILE)}
