"""Which engine serves a source, and what is made of the source so that it can."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tuneserve.engines.kind import EngineKind, NamedAdapter, Preflight, ServeOptions
from tuneserve.errors import EngineError, InputError, SourceError, TuneserveError
from tuneserve.sources import ResolvedSource

AUTO = "auto"
_NATIVE = "native"
_NATIVE_FLAGS = {"prefix_cache": "--no-prefix-cache"}
_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_BINARY_ENGINES = ("llama.cpp",)
_PYTHON_ENGINES = ("vllm", "sglang", "unsloth")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter that requests choose by name, and the source that it is over its base.

    ``directory`` has what was made of it for an engine that does not load it as it is.
    """

    name: str
    source: ResolvedSource

    directory: Path | None = None

    @property
    def named(self) -> NamedAdapter:
        """What engines are told of it."""
        directory = self.directory or self.source.adapter_dir
        assert directory is not None, "a source with a base of its own is an adapter"
        return NamedAdapter(self.name, directory)


@dataclass(frozen=True, kw_only=True)
class Served:
    """What will be served: ``artifact``, which ``method`` made of ``source`` (None: it is the source), by ``kind``.

    With ``verify`` it is compared with ``source`` before it is served.
    """

    kind: EngineKind
    source: ResolvedSource
    artifact: ResolvedSource
    method: str | None
    adapters: tuple[Adapter, ...]
    options: ServeOptions
    notes: tuple[str, ...]
    verify: bool = True


def split_adapters(given: Sequence[str]) -> dict[str, str]:
    """Read ``NAME=PATH`` for each adapter.

    Raises:
        InputError: one is malformed, or a name is given twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, _, path = text.partition("=")
        if not _ADAPTER_NAME.fullmatch(name) or not path:
            raise InputError(
                f"--adapter {text[:100]!r} is not NAME=PATH; give it a name of letters, digits, . _ and -, "
                "like en=outputs/en."
            )
        if name in found:
            raise InputError(f"two models would be called {name!r}; choose another name for the adapter.")
        found[name] = path
    return found


def open_adapters(given: Mapping[str, str], source: ResolvedSource) -> tuple[Adapter, ...]:
    """Open the adapters over the base ``source``, by name.

    Raises:
        InputError: a name cannot be one, or there is no adapter; or the source is an adapter itself.
    """
    from tuneserve.sources import resolve

    if given and source.adapter_dir is not None:
        raise InputError(
            f"{source.name} is an adapter itself; serve its base, and name each adapter over it with --adapter."
        )
    found = []
    for name, path in given.items():
        if not _ADAPTER_NAME.fullmatch(name):
            raise InputError(f"an adapter cannot be called {name[:100]!r}; use letters, digits, . _ and -.")
        try:
            adapter = resolve(path, base=source.weights_file or source.model_dir)
        except SourceError as error:
            raise InputError(f"the adapter {name} cannot be served: {error}") from None
        found.append(Adapter(name=name, source=adapter))
    return tuple(found)


def check_program(engine: str, python: Path | None, binary: Path | None) -> Path | None:
    """Return the engine's own program, if one is given.

    Raises:
        InputError: the engine takes no such program.
    """
    for option, path, engines in (
        ("--engine-python", python, _PYTHON_ENGINES),
        ("--engine-binary", binary, _BINARY_ENGINES),
    ):
        if path is not None and engine not in engines:
            raise InputError(f"{option} is for {', '.join(engines)}, not for --engine {engine}; leave it out.")
    return python or binary


def choose(
    engine: str, source: ResolvedSource, adapters: Sequence[Adapter], options: ServeOptions
) -> tuple[EngineKind, Preflight]:
    """Return the engine and its preflight. ``auto`` takes the one that the planner chooses for this machine.

    Where that one is not here or cannot, it is the first that can, the native engine before others.

    Raises:
        InputError: there is no such engine, or none here can serve the source; all reasons are named.
        EngineError: the engine is not installed.
    """
    from tuneserve.engines.registry import ENGINES, find_engine

    named = [adapter.named for adapter in adapters]
    if engine != _NATIVE and (given := options.native.given()):
        flags = ", ".join(_NATIVE_FLAGS.get(name, f"--{name.replace('_', '-')}") for name in given)
        raise InputError(f"{flags} is for the native engine, not for --engine {engine}; name it with --engine native.")
    if engine != AUTO:
        kind = find_engine(engine)
        return kind, kind.check(source, named, options)
    if options.arguments:
        raise InputError("--engine-arg goes to one engine; name it with --engine.")
    planned = _planned(source, adapters, options)
    reasons, exporting = [], []
    for name in sorted(ENGINES, key=lambda name: name != planned):
        kind = ENGINES[name]
        try:
            preflight = kind.check(source, named, options)
        except EngineError as error:
            reasons.append(f"{name}: {str(error).rstrip('.')}")
            continue
        if not preflight.problems:
            if planned in ENGINES and planned != name:
                note = f"tuneserve plan chooses {planned} for this machine, which cannot be used: {reasons[0]}"
                preflight = replace(preflight, notes=(note, *preflight.notes))
            return kind, preflight
        if preflight.export is not None:
            exporting.append((kind, preflight))
        reasons.append(f"{name}: {', and '.join(preflight.problems)}")
    if exporting:
        return exporting[0]
    raise InputError(f"no engine here can serve {source.name} ({'; '.join(reasons)}); install one of them.")


def _planned(source: ResolvedSource, adapters: Sequence[Adapter], options: ServeOptions) -> str | None:
    """Return the engine that the planner chooses, None where it can choose none."""
    from tuneserve.planner import plan

    try:
        made = plan(
            source,
            context=options.context_length,
            concurrency=options.max_running,
            adapters=max(1, len(adapters)),
        )
    except TuneserveError:
        return None
    return made.engine


def prepare(
    engine: str, source: ResolvedSource, adapters: Sequence[Adapter], options: ServeOptions, *, verify: bool
) -> Served:
    """Choose the engine, and export what it can load where it cannot load the source itself.

    Raises:
        InputError: it can load neither; all reasons are named.
        EngineError: the engine is not installed.
        ParityError: what was exported is not the model that was trained.
    """
    from tuneserve.cli._run import console
    from tuneserve.sources import resolve

    kind, preflight = choose(engine, source, adapters, options)
    artifact, method = source, None
    if preflight.adapter_export is not None:
        adapters = [
            replace(each, directory=_made(each.source, preflight.adapter_export, verify=verify)) for each in adapters
        ]
        preflight = kind.check(source, [adapter.named for adapter in adapters], options)
    if preflight.problems:
        if preflight.export is None:
            raise InputError(f"{kind.name} cannot serve {source.name}: {', and '.join(preflight.problems)}.")
        method = preflight.export
        console.print(f"{kind.name} needs {method}: {', and '.join(preflight.problems)}", markup=False, soft_wrap=True)
        made = _made(source, method, verify=verify)
        # Of a split GGUF file the first part.
        artifact = resolve(next(iter(sorted(made.glob("*.gguf"))), made))
        preflight = kind.check(artifact, [adapter.named for adapter in adapters], options)
        if preflight.problems:
            raise InputError(
                f"{kind.name} cannot serve the {method} model of {source.name} either: "
                f"{', and '.join(preflight.problems)}."
            )
    return Served(
        kind=kind,
        source=source,
        artifact=artifact,
        method=method,
        adapters=tuple(adapters),
        options=options,
        notes=preflight.notes,
        verify=verify,
    )


def _made(source: ResolvedSource, method: str, *, verify: bool) -> Path:
    """Return the directory of what ``method`` makes of ``source``, made at the first time and kept in the cache."""
    from tuneserve import artifacts
    from tuneserve.cli._progress import TerminalProgress
    from tuneserve.cli._run import console
    from tuneserve.sources import cache_directory, locked

    plan = artifacts.plan_export(source, method=method)
    key = hashlib.sha256(json.dumps([plan.fingerprint, *_text_files(source)]).encode()).hexdigest()[:16]
    out = cache_directory() / "served" / f"{method.replace(':', '-')}-{key}"
    with locked(out.with_name(f".{out.name}.lock")):
        if out.is_dir():
            console.print(f"reusing {out}", markup=False, soft_wrap=True)
        else:
            with TerminalProgress(console) as progress:
                artifacts.export(source, out, method=method, progress=progress, verify=verify)
    return out


def _text_files(source: ResolvedSource) -> list[tuple[str, int, int]]:
    """Return the size and time of what goes into an artifact beside weights."""
    directories = dict.fromkeys((source.tokenizer_dir, source.model_dir))
    files = [path for directory in directories for path in sorted(directory.iterdir()) if path.is_file()]
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
