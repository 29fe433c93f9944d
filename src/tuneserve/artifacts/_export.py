"""The export: plan, execute, check, describe, and only then put in place."""

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneserve import parity
from tuneserve.adapters import WeightedAdapter, merge_model, open_adapter
from tuneserve.artifacts._execute import execute
from tuneserve.artifacts._journal import Journal
from tuneserve.artifacts._manifest import MANIFEST_FILE, manifest, read_manifest
from tuneserve.artifacts._methods import MethodOptions, canonical, make_format
from tuneserve.artifacts._plan import ExportPlan
from tuneserve.checkpoint import AtomicDirectory, write_json
from tuneserve.errors import InputError, OutputError, ParityError
from tuneserve.parity import ParityReport
from tuneserve.sources import ResolvedSource, open_model, resolve

# Configuration, tokenizer, index and manifest of one artifact.
_SPARE_BYTES = 50_000_000


class ExportProgress:
    """Is told how far an export is; override what is of interest."""

    def planned(self, plan: ExportPlan) -> None:
        """The plan is made and writing begins."""

    def wrote(self, nbytes: int) -> None:
        """A merged tensor of ``nbytes`` went into all outputs."""

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
    method: str | Sequence[str] = "merged_16bit",
    base: str | Path | None = None,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
    resume: bool = False,
    verify: bool = True,
    progress: ExportProgress | None = None,
) -> ExportResult:
    """Make an artifact of ``source`` in the new directory ``out``, or several in directories of it by method.

    The weights pass through once, tensor by tensor: the delta is computed and added in float32, the sum rounded once to
    16 bits, and that is quantised for each method. Each artifact is compared with the unmerged reference before ``out``
    takes its name. On any failure nothing is left behind.

    Args:
        source: what to export; see :func:`tuneserve.sources.resolve`.
        out: a directory that does not exist yet.
        method: one or several of ``METHODS``.
        base: what to use instead of the base that the adapter names.
        dtype: ``bfloat16`` or ``float16`` for the merged weights; None keeps a 16-bit base's own.
        max_shard_bytes: the largest safetensors file, 5 GB unless given.
        resume: go on where a killed export into ``out`` was; a finished one of the same inputs is returned as it is.
        verify: whether to compare the results with the reference.
        progress: is told how far the export is.

    Raises:
        InputError: the source, method or output cannot be used.
        ParityError: a result is not the model that was trained.
    """
    started = time.monotonic()
    plan = plan_export(source, method=method, base=base, dtype=dtype, max_shard_bytes=max_shard_bytes)
    progress = progress or ExportProgress()
    if resume and _is_finished(Path(out), plan):
        return ExportResult(Path(out).absolute(), plan, {}, 0.0)
    progress.planned(plan)
    with AtomicDirectory(Path(out), resume=resume) as output:
        _require_space(output.path, plan)
        read, hashes = execute(plan, output.path, progress.wrote)
        adapter_hashes = {path.name: _sha256(path) for path in plan.inputs if path.parent == plan.source.adapter_dir}
        reports = {}
        for name, format_ in plan.formats.items():
            directory = plan.directory(output.path, name)
            format_.write_side_files(directory)
            if verify:
                progress.verifying(name)
                reports[name] = _checked(directory, name, plan.source)
            written = hashes[name] | _other_hashes(directory, hashes[name])
            seconds = time.monotonic() - started
            described = manifest(plan, name, read, written, adapter_hashes, reports.get(name), seconds)
            write_json(directory / MANIFEST_FILE, described)
        Journal(output.path, plan.fingerprint).remove()
    return ExportResult(output.target, plan, reports, time.monotonic() - started)


def plan_export(
    source: str | Path | ResolvedSource,
    *,
    method: str | Sequence[str] = "merged_16bit",
    base: str | Path | None = None,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
) -> ExportPlan:
    """Decide what an export will read and write, from headers and configurations alone.

    Raises:
        InputError: as :func:`export`, except for the output.
    """
    methods = [canonical(name) for name in ([method] if isinstance(method, str) else method)]
    if not methods or len(set(methods)) != len(methods):
        raise InputError(f"the methods {', '.join(methods) or '(none)'} are not different ones; name each once.")
    if max_shard_bytes is not None and max_shard_bytes < 1:
        raise InputError(f"the shard size {max_shard_bytes} is not positive; give it in bytes, or as 5GB.")
    resolved = source if isinstance(source, ResolvedSource) else resolve(source, base=base)
    adapters = [WeightedAdapter(open_adapter(resolved.adapter_dir))] if resolved.adapter_dir else []
    _refuse_merging_twice(resolved)
    weights, config = open_model(resolved)
    model = merge_model(weights, config, adapters, dtype)
    options = MethodOptions() if max_shard_bytes is None else MethodOptions(max_shard_bytes=max_shard_bytes)
    return ExportPlan(resolved, model, {name: make_format(name, resolved, model, options) for name in methods})


def _is_finished(out: Path, plan: ExportPlan) -> bool:
    made = [read_manifest(plan.directory(out, name)) for name in plan.formats]
    return all(found is not None and found["run"].get("fingerprint") == plan.fingerprint for found in made)


def _refuse_merging_twice(source: ResolvedSource) -> None:
    """Refuse a base that this very adapter was merged into."""
    if source.adapter_dir is None or (made := read_manifest(source.model_dir)) is None:
        return
    adapter = made.get("adapter")
    files = adapter.get("files") if isinstance(adapter, dict) else None
    weights = source.adapter_dir / "adapter_model.safetensors"
    if isinstance(files, dict) and weights.is_file() and files.get(weights.name) == _sha256(weights):
        raise InputError(
            f"{source.model_dir} already has {source.name} merged in; export that directory itself, or name the base "
            "that the adapter was trained on with --base."
        )


def _checked(directory: Path, method: str, source: ResolvedSource) -> ParityReport:
    report = parity.verify(directory, source)
    if not report.passed:
        raise ParityError(
            f"the {method} model is not the one that was trained ({'; '.join(report.failures)}), so nothing was "
            "written; please report this with the adapter's configuration."
        )
    return report


def _require_space(directory: Path, plan: ExportPlan) -> None:
    free = shutil.disk_usage(directory).free
    # What a killed run has written is not needed again.
    present = sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())
    needed = sum(plan.output_bytes.values()) + _SPARE_BYTES * len(plan.formats) - present
    if free < needed:
        raise OutputError(
            f"the output needs {needed / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free; "
            "free some space or choose an output on another disk."
        )


def _other_hashes(directory: Path, known: Mapping[str, str]) -> dict[str, str]:
    files = sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))
    return {path.name: _sha256(path) for path in files if path.name not in (*known, MANIFEST_FILE)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
