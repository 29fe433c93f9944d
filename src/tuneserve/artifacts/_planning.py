"""From what the user asked for to a plan."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from tuneserve.adapters import Combination, WeightedAdapter, merge_model, open_adapter
from tuneserve.artifacts._manifest import read_manifest
from tuneserve.artifacts._methods import (
    ADAPTER_METHODS,
    GGUF,
    OLLAMA,
    MethodOptions,
    canonical,
    make_format,
)
from tuneserve.artifacts._plan import MERGED, Blend, ExportPlan
from tuneserve.artifacts._safetensors import DEFAULT_SHARD_BYTES
from tuneserve.artifacts.calibrated import CALIBRATED, open_calibrator
from tuneserve.artifacts.gguf import compute_imatrix
from tuneserve.checkpoint import file_digest
from tuneserve.errors import InputError
from tuneserve.sources import BasePrecision, ResolvedSource, open_model, resolve

Dtype = Literal["bfloat16", "float16"]
_DTYPES = ("bfloat16", "float16")


def plan_export(
    source: str | Path | ResolvedSource,
    *,
    method: str | Sequence[str] = MERGED,
    base: str | Path | None = None,
    base_precision: BasePrecision | None = None,
    weight: float = 1.0,
    more_adapters: Mapping[str | Path, float] | None = None,
    combination: Combination | None = None,
    dtype: Dtype | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    imatrix_from: str | Path | None = None,
    calibrate_with: str | Path | None = None,
    engine_python: str | Path | None = None,
) -> ExportPlan:
    """Decide what an export will read and write, from headers and configurations alone.

    Args:
        source: what to export; see :func:`tuneserve.sources.resolve`.
        method: one or several of ``METHODS``, or of Unsloth's names for them.
        base: what to use instead of the base that the adapter names.
        base_precision: ``16bit`` or ``trained``, where the base is quantised; see :func:`tuneserve.sources.resolve`.
        weight: the factor of the adapter's delta.
        more_adapters: further adapters over the same base, with the factors of theirs.
        combination: how several adapters become one, by default the sum of their weighted deltas.
        dtype: ``bfloat16`` or ``float16`` for the merged weights; None keeps a 16-bit base's own.
        max_shard_bytes: the largest safetensors file.
        imatrix_from: text that says what matters when GGUF types are chosen and quantised; the model is run on it.
        calibrate_with: text for the methods that calibrate.
        engine_python: an interpreter with ``llmcompressor`` for those, instead of tuneserve's own environment.

    Raises:
        InputError: the source, the method or an option cannot be used.
        EngineError: what calibrates is not installed.
    """
    methods = tuple(canonical(name) for name in ([method] if isinstance(method, str) else method))
    if not methods or len(set(methods)) != len(methods):
        raise InputError(f"the methods {', '.join(methods) or '(none)'} are not different ones; name each once.")
    if max_shard_bytes < 1:
        raise InputError(f"the shard size {max_shard_bytes} is not positive; give it in bytes, or as 5GB.")
    if dtype is not None and dtype not in _DTYPES:
        raise InputError(f"the dtype {dtype!r} is not one to merge in; choose {' or '.join(_DTYPES)}.")
    if combination is not None and not more_adapters:
        raise InputError("a combination is of several adapters; name the others, or leave it out.")
    factors = [weight, *(more_adapters or {}).values()]
    if not all(math.isfinite(factor) for factor in factors):
        raise InputError("the weight of an adapter is no finite number; choose one like 0.5.")
    if isinstance(source, ResolvedSource):
        if base is not None or base_precision is not None:
            raise InputError("a resolved source has its base already; give base and base_precision to resolve().")
        resolved = source
    else:
        resolved = resolve(source, base=base, base_precision=base_precision)
    adapters = _adapters(resolved, weight, more_adapters or {})
    calibrator = open_calibrator(
        methods,
        resolved,
        text=None if calibrate_with is None else Path(calibrate_with),
        python=None if engine_python is None else Path(engine_python),
    )
    imatrix = None
    if imatrix_from is not None:
        if not any(name.startswith((GGUF, OLLAMA)) for name in methods):
            raise InputError(f"an importance matrix is of no use to {', '.join(methods)}; leave it out.")
        imatrix = compute_imatrix(resolved, Path(imatrix_from))
    blend = _blend(adapters, combination)
    alone = [name for name in methods if name in ADAPTER_METHODS]
    if blend is not None and alone:
        raise InputError(f"{alone[0]} writes one adapter as it is; leave the weights and further adapters out.")
    weights, config = open_model(resolved)
    model = merge_model(weights, config, adapters, dtype, combination)
    options = MethodOptions(max_shard_bytes=max_shard_bytes, imatrix=imatrix)
    passing = [name for name in methods if name not in CALIBRATED]
    if calibrator is not None and MERGED not in passing:
        passing.append(MERGED)
    return ExportPlan(
        source=resolved,
        adapter_dirs=tuple(each.adapter.directory for each in adapters),
        blend=blend,
        model=model,
        methods=methods,
        formats={name: make_format(name, resolved, config, model, options) for name in passing},
        calibrator=calibrator,
        max_shard_bytes=max_shard_bytes,
    )


def _blend(adapters: Sequence[WeightedAdapter], combination: Combination | None) -> Blend | None:
    weights = tuple(each.weight for each in adapters)
    return None if weights in ((), (1.0,)) else Blend(weights, combination or Combination())


def _adapters(source: ResolvedSource, weight: float, more: Mapping[str | Path, float]) -> list[WeightedAdapter]:
    if source.adapter_dir is None:
        if more or weight != 1.0:
            raise InputError(
                f"{source.name} is a whole model, not an adapter, and takes no weight and no adapters; leave them out."
            )
        return []
    _refuse_merging_twice(source)
    found = [WeightedAdapter(open_adapter(source.adapter_dir), weight)]
    for name, factor in more.items():
        directory = resolve(name, base=source.model_dir).adapter_dir
        if directory is None:
            raise InputError(f"{name} is a whole model, not an adapter; name adapters over the same base.")
        found.append(WeightedAdapter(open_adapter(directory), factor))
    return found


def _refuse_merging_twice(source: ResolvedSource) -> None:
    """Refuse a base that this very adapter was merged into."""
    assert source.adapter_dir is not None, "only adapters are merged"
    made = read_manifest(source.model_dir)
    merged = made.get("adapters") if made else None
    weights = source.adapter_dir / "adapter_model.safetensors"
    if not isinstance(merged, list) or not weights.is_file():
        return
    files = [adapter.get("files") for adapter in merged if isinstance(adapter, dict)]
    digest = file_digest(weights)
    if any(isinstance(found, dict) and found.get(weights.name) == digest for found in files):
        raise InputError(
            f"{source.model_dir} already has {source.name} merged in; export that directory itself, or name the base "
            "that the adapter was trained on with --base."
        )
