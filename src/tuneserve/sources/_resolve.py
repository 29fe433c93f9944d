"""From what the user names to the directories that hold it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneserve.errors import SourceError
from tuneserve.sources import _demo, _hub
from tuneserve.sources._precision import BasePrecision, check_precision, choose, sixteen_bit_by_name

ADAPTER_CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"
_MAX_CONFIG_BYTES = 10_000_000


@dataclass(frozen=True)
class ResolvedSource:
    """A source with all its files on this machine.

    ``model_dir`` holds the weights: the base's when ``adapter_dir`` is set, else the whole model's. ``tokenizer_dir``
    is the adapter's directory where that has a tokenizer of its own (training may have changed it), else the model's.
    ``base_name`` is what the base was called by whoever named it, None without an adapter. ``base_precision`` says
    which weights stand in for quantised ones, and ``reason`` why, in one sentence to show; None where none do.
    """

    source: str
    name: str
    model_dir: Path
    adapter_dir: Path | None
    tokenizer_dir: Path
    base_name: str | None
    base_precision: BasePrecision | None = None
    reason: str | None = None


def resolve(
    source: str | Path, *, base: str | Path | None = None, base_precision: BasePrecision | None = None
) -> ResolvedSource:
    """Find the files of ``source``, downloading what is not on this machine yet.

    Args:
        source: a model or adapter directory, a hub id (``org/name`` or ``org/name@revision``), ``demo`` (the built-in
            base model) or ``demo:tickets`` (the example adapter over it).
        base: what to use instead of the base that the adapter names.
        base_precision: of quantised weights, ``trained`` uses what they are dequantised, as an adapter's training did,
            and ``16bit`` the 16-bit model they were made from, which is found by its name. None is ``trained``.

    Raises:
        SourceError: nothing usable is found there; the message says what to do.
        CheckpointError: the weights are quantised in a way that their config does not name.
    """
    check_precision(base_precision)
    source = str(source)
    directory = _locate(source)
    if not (directory / ADAPTER_CONFIG).is_file():
        if base is not None:
            raise SourceError(f"{source} is a whole model, not an adapter, so it takes no other base; drop the base.")
        if not (directory / MODEL_CONFIG).is_file():
            raise SourceError(
                f"{directory} has neither {ADAPTER_CONFIG} nor {MODEL_CONFIG}; "
                "point to the directory that training or a download wrote."
            )
        choice = choose(source, directory, base_precision, _locate, trained_on=False)
        name = _name(source, directory)
        return ResolvedSource(source, name, choice.model_dir, None, directory, None, choice.precision, choice.reason)

    named = _base_name(source, directory) if base is None else str(base)
    chosen = sixteen_bit_by_name(named, _locate) if base_precision == "16bit" else None
    if chosen is None:
        model_dir = _base_directory(source, named, explicit=base is not None)
        chosen = choose(named, model_dir, base_precision, _locate, trained_on=True)
    own_tokenizer = any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    tokenizer_dir = directory if own_tokenizer else chosen.model_dir
    name = _name(source, directory)
    return ResolvedSource(
        source, name, chosen.model_dir, directory, tokenizer_dir, named, chosen.precision, chosen.reason
    )


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON object of a size that a configuration can have.

    Raises:
        SourceError: the file is missing, huge, or not a JSON object.
    """
    bad = SourceError(f"{path} is not a JSON object; download or save it again.")
    if not path.is_file():
        raise SourceError(f"{path} is missing; download or save the directory again.")
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise bad
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise bad from None
    if not isinstance(config, dict):
        raise bad
    return config


def _locate(source: str) -> Path:
    if "\0" in source or not source:
        raise SourceError("the source name is empty or has a NUL character in it; give a directory or a hub id.")
    if source == _demo.BASE:
        return _demo.base_directory()
    if source == _demo.ADAPTER:
        return _demo.adapter_directory()
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            return path
        if path.exists():
            raise SourceError(f"{source} is a file; point to the directory of the model or adapter.")
    except OSError as error:
        raise SourceError(f"{source[:200]} cannot be looked at ({error.strerror}); give another path.") from None
    except RuntimeError:
        raise SourceError(f"{source[:200]} begins with the home of no known user; write the path out.") from None
    if (hub_id := _hub.parse(source)) is None:
        raise SourceError(
            f"there is no directory {source[:200]!r}, and it is not a hub id (org/name or org/name@revision) either; "
            "check the path."
        )
    return _hub.download(hub_id)


def _base_name(source: str, directory: Path) -> str:
    config = read_config(directory / ADAPTER_CONFIG)
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise SourceError(f"{source} does not name its base model; pass it with --base.")
    revision = config.get("revision")
    if isinstance(revision, str) and revision and (hub_id := _hub.parse(named)) and not hub_id.revision:
        return named if Path(named).is_dir() else f"{named}@{revision}"
    return named


def _base_directory(source: str, named: str, *, explicit: bool) -> Path:
    try:
        model_dir = _locate(named)
    except SourceError as error:
        if explicit:
            raise
        raise SourceError(
            f"the base of {source} was not found: {str(error).rstrip('.')}; or pass it with --base."
        ) from None
    if (model_dir / ADAPTER_CONFIG).is_file() and not (model_dir / MODEL_CONFIG).is_file():
        raise SourceError(f"the base of {source}, {named}, is itself an adapter; merge that one first.")
    if not (model_dir / MODEL_CONFIG).is_file():
        raise SourceError(f"the base of {source}, {named}, has no {MODEL_CONFIG}; pass a model directory with --base.")
    return model_dir


def _name(source: str, directory: Path) -> str:
    if source in (_demo.BASE, _demo.ADAPTER):
        return source
    if directory.resolve().is_relative_to(Path.cwd()) or Path(source).is_dir():
        return directory.resolve().name
    return source.partition("@")[0]
