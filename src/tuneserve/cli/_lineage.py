"""How what is served came to be, for the page that shows it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneserve.cli._engine import Served
from tuneserve.sources import ResolvedSource, read_config

if TYPE_CHECKING:
    from tuneserve.engines.contract import EngineInfo
    from tuneserve.engines.probes import Verdict
    from tuneserve.gateway import Agreement, Step

_MANIFEST = "tuneserve.json"
_SHOWN_DIGITS = 12


def lineage(served: Served, engine: "EngineInfo", verdict: "Verdict | None") -> "tuple[Step, ...]":
    """Return the steps from the base to the engine; ``verdict`` is of the engine against the source."""
    return (*_steps(served.source), *_made(served), _running(engine, verdict))


def adapter_lineage(
    served: Served, adapter: ResolvedSource, engine: "EngineInfo", verdict: "Verdict | None"
) -> "tuple[Step, ...]":
    """Return the steps to an adapter that the engine computes unmerged."""
    return (*_steps(served.source), *_made(served), _adapter(adapter.name), _running(engine, verdict))


def _steps(source: ResolvedSource) -> "list[Step]":
    """Return the steps to a source: it may be an artifact of ours, whose manifest tells of its own."""
    from tuneserve.gateway import Step

    if source.adapter_dir is not None:
        return [Step(kind="base", name=source.base_name or source.model_dir.name), _adapter(source.name)]
    directory = source.weights_file.parent if source.weights_file is not None else source.tokenizer_dir
    manifest = _manifest(directory)
    if "method" not in manifest:
        return [Step(kind="model", name=source.name)]
    base = _object(manifest, "base")
    facts = {name: str(base[name]) for name in ("revision", "precision") if base.get(name)}
    adapters = manifest.get("adapters")
    names = [str(each.get("name")) for each in adapters if isinstance(each, dict)] if isinstance(adapters, list) else []
    return [
        Step(kind="base", name=str(base.get("name")), facts=facts),
        *map(_adapter, names),
        _method(manifest),
    ]


def _made(served: Served) -> "list[Step]":
    """Return the step that was taken so that the engine can load the source."""

    if served.method is None:
        return []
    file = served.artifact.weights_file
    manifest = _manifest(served.artifact.tokenizer_dir if file is None else file.parent)
    return [_method({"method": served.method, **manifest})]


def _manifest(directory: Path) -> Mapping[str, Any]:
    """Read an artifact's manifest; not through its own room, which needs torch."""
    path = directory / _MANIFEST
    return read_config(path) if path.is_file() else {}


def _method(manifest: Mapping[str, Any]) -> "Step":
    from tuneserve.gateway import Step

    run, libraries = _object(manifest, "run"), _object(manifest, "libraries")
    facts = {
        "made": run.get("time"),
        "by": f"tuneserve {libraries['tuneserve']}" if "tuneserve" in libraries else None,
        "changed tensors": manifest.get("merged_tensors"),
        "files": len(_object(manifest, "files")) or None,
        "fingerprint": str(run.get("fingerprint", ""))[:_SHOWN_DIGITS] or None,
    }
    return Step(
        kind="method",
        name=str(manifest["method"]),
        facts={name: str(value) for name, value in facts.items() if value is not None},
        parity=_parity(_object(manifest, "parity")),
    )


def _parity(report: Mapping[str, Any]) -> "Agreement | None":
    from tuneserve.gateway import Agreement

    kl, top1, positions = (report.get(name) for name in ("mean_kl", "agreement", "positions"))
    if not isinstance(kl, int | float) or not isinstance(top1, int | float) or not isinstance(positions, int):
        return None
    return Agreement(kl=kl, top1=top1, positions=positions)


def _running(engine: "EngineInfo", verdict: "Verdict | None") -> "Step":
    from tuneserve.gateway import Agreement, Step

    parity = None
    if verdict is not None:
        parity = Agreement(kl=verdict.mean_kl, top1=verdict.agreement, positions=verdict.positions, at_least=True)
    facts = {"version": engine.version, "device": engine.device, "dtype": engine.dtype}
    return Step(kind="engine", name=engine.engine, facts=facts, parity=parity)


def _adapter(name: str) -> "Step":
    from tuneserve.gateway import Step

    return Step(kind="adapter", name=name)


def _object(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}
