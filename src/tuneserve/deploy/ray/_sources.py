"""The files that every replica and gateway needs, as their own machine sees them."""

import socket
from pathlib import Path

from tuneserve.deploy.ray._options import RayOptions
from tuneserve.errors import SourceError
from tuneserve.sources import ResolvedSource, resolve


def local_paths(options: RayOptions) -> tuple[str, ...]:
    """Return the paths that each machine of the cluster must have; a hub id or a built-in model is none."""
    named = (options.source, *([options.base] if options.base else []), *options.adapters.values())
    return tuple(path for path in named if path.startswith(("/", "./", "../", "~")) or path.endswith(".gguf"))


def missing(paths: tuple[str, ...]) -> list[str]:
    """Return those that this machine does not have."""
    return [path for path in paths if not Path(path).expanduser().exists()]


def resolve_all(options: RayOptions) -> tuple[ResolvedSource, dict[str, ResolvedSource]]:
    """Resolve on this machine the source, and its adapters by the names that requests give.

    Raises:
        SourceError: this machine does not see them.
    """
    require(missing(local_paths(options)), socket.gethostname())
    source = resolve(options.source, base=options.base)
    base = source.weights_file or source.model_dir
    adapters = {name: resolve(path, base=base) for name, path in options.adapters.items()}
    for name, adapter in adapters.items():
        if adapter.adapter_dir is None:
            raise SourceError(
                f"{options.adapters[name]} is a whole model, not an adapter; name the directory that training wrote."
            )
    return source, adapters


def require(absent: list[str], machine: str) -> None:
    """Refuse paths that a machine does not have.

    Raises:
        SourceError: there is one.
    """
    if absent:
        raise SourceError(
            f"the machine {machine} of the cluster does not see {absent[0]}; put it on a volume that all machines "
            "mount at the same path, or name it by its hub id."
        )
