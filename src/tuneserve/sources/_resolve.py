"""From what the user names to the directories that hold it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneserve.errors import SourceError
from tuneserve.sources import _demo, _hub
from tuneserve.sources._gguf import describe_gguf
from tuneserve.sources._precision import BasePrecision, check_precision, choose, sixteen_bit_by_name
from tuneserve.sources._text_files import adapter_text

ADAPTER_CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"
_GGUF = ".gguf"
_MAX_CONFIG_BYTES = 10_000_000


@dataclass(frozen=True)
class ResolvedSource:
    """A source with all its files on this machine.

    ``model_dir`` holds the weights: the base's when ``adapter_dir`` is set, else the whole model's. ``tokenizer_dir``
    has the tokenizer and the chat template: of each the adapter's own where it has one, else the model's. ``base_name``
    is what the base was called by whoever named it, None without an adapter. ``weights_file`` is the GGUF file with the
    weights, where there is one; ``model_dir`` then has only what describes them. ``base_precision`` says which weights
    stand in for quantised ones, and ``reason`` why, in one sentence to show; None where none do.
    """

    source: str
    name: str
    model_dir: Path
    adapter_dir: Path | None
    tokenizer_dir: Path
    base_name: str | None
    weights_file: Path | None = None
    base_precision: BasePrecision | None = None
    reason: str | None = None


def resolve(
    source: str | Path, *, base: str | Path | None = None, base_precision: BasePrecision | None = None
) -> ResolvedSource:
    """Find the files of ``source``, downloading what is not on this machine yet.

    Args:
        source: a model or adapter directory, a ``.gguf`` file (of a split one the first part), a hub id (``org/name``
            or ``org/name@revision``), ``demo`` (the built-in base model) or ``demo:tickets`` (the example adapter over
            it).
        base: what to use instead of the base that the adapter names.
        base_precision: of quantised weights, ``trained`` uses what they are dequantised, as an adapter's training did,
            and ``16bit`` the 16-bit model they were made from, which is found by its name. None is ``trained``.

    Raises:
        SourceError: nothing usable is found there; the message says what to do.
        CheckpointError: a GGUF file is malformed, or weights are quantised in a way that their config does not name.
        SpecError: the configuration in a GGUF file is malformed.
    """
    check_precision(base_precision)
    source = str(source)
    directory, weights_file = _locate(source)
    if not (directory / ADAPTER_CONFIG).is_file():
        if base is not None:
            raise SourceError(f"{source} is a whole model, not an adapter, so it takes no other base; drop the base.")
        if not (directory / MODEL_CONFIG).is_file():
            files = sorted(directory.glob(f"*{_GGUF}"))
            instead = files[0] if files else "the directory that training or a download wrote"
            raise SourceError(f"{directory} has neither {ADAPTER_CONFIG} nor {MODEL_CONFIG}; point to {instead}.")
        choice = choose(source, directory, base_precision, _locate_directory, trained_on=False)
        return ResolvedSource(
            source=source,
            name=_name(source, directory),
            model_dir=choice.model_dir,
            adapter_dir=None,
            tokenizer_dir=directory,
            base_name=None,
            weights_file=weights_file,
            base_precision=choice.precision,
            reason=choice.reason,
        )

    named = _base_name(source, directory) if base is None else str(base)
    chosen = sixteen_bit_by_name(named, _locate_directory) if base_precision == "16bit" else None
    if chosen is None:
        model_dir, weights_file = _base_files(source, named, explicit=base is not None)
        chosen = choose(named, model_dir, base_precision, _locate_directory, trained_on=True)
    return ResolvedSource(
        source=source,
        name=_name(source, directory),
        model_dir=chosen.model_dir,
        adapter_dir=directory,
        tokenizer_dir=adapter_text(directory, chosen.model_dir),
        base_name=named,
        weights_file=weights_file,
        base_precision=chosen.precision,
        reason=chosen.reason,
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


def _locate(source: str) -> tuple[Path, Path | None]:
    """Return the directory of a source, and its GGUF file if it is one."""
    if "\0" in source or not source:
        raise SourceError("the source name is empty or has a NUL character in it; give a directory or a hub id.")
    if source == _demo.BASE:
        return _demo.base_directory(), None
    if source == _demo.ADAPTER:
        return _demo.adapter_directory(), None
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            return path, None
        if path.exists() and path.suffix == _GGUF:
            return describe_gguf(path), path
        if path.exists():
            raise SourceError(
                f"{source} is a file; point to the directory of the model or adapter, or to a .gguf file."
            )
    except OSError as error:
        raise SourceError(f"{source[:200]} cannot be looked at ({error.strerror}); give another path.") from None
    except RuntimeError:
        raise SourceError(f"{source[:200]} begins with the home of no known user; write the path out.") from None
    if (hub_id := _hub.parse(source)) is None:
        raise SourceError(
            f"there is no directory {source[:200]!r}, and it is not a hub id (org/name or org/name@revision) either; "
            "check the path."
        )
    return _hub.download(hub_id), None


def _locate_directory(source: str) -> Path:
    return _locate(source)[0]


def _base_name(source: str, directory: Path) -> str:
    config = read_config(directory / ADAPTER_CONFIG)
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise SourceError(f"{source} does not name its base model; pass it with --base.")
    revision = config.get("revision")
    if isinstance(revision, str) and revision and (hub_id := _hub.parse(named)) and not hub_id.revision:
        return named if Path(named).is_dir() else f"{named}@{revision}"
    return named


def _base_files(source: str, named: str, *, explicit: bool) -> tuple[Path, Path | None]:
    try:
        model_dir, weights_file = _locate(named)
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
    return model_dir, weights_file


def _name(source: str, directory: Path) -> str:
    if source in (_demo.BASE, _demo.ADAPTER):
        return source
    if source.endswith(_GGUF):
        return Path(source).name.removesuffix(_GGUF)
    if directory.resolve().is_relative_to(Path.cwd()) or Path(source).is_dir():
        return directory.resolve().name
    return source.partition("@")[0]
