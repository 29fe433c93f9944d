"""The directories that a model consists of, and where a deployment finds them."""

import re
from dataclasses import dataclass
from pathlib import Path

from tuneserve.errors import InputError
from tuneserve.sources import ResolvedSource

_SNAPSHOT = re.compile(r"models--(?P<org>[\w.-]+?)--(?P<name>[\w.-]+)/snapshots/(?P<commit>[0-9a-f]{40})", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Part:
    """The model, its base, or an adapter, called ``name`` in a deployment.

    ``root`` is the directory on this machine that holds all its files, ``inside`` the path below it that ``tuneserve
    serve`` is told ("" is the directory itself). ``hub`` is ``org/name@commit`` where the files are a snapshot of the
    hub's, None where only this machine is known to have them.
    """

    name: str
    root: Path
    inside: str
    hub: str | None

    @property
    def path(self) -> Path:
        """What ``tuneserve serve`` is told on this machine."""
        return self.root / self.inside

    def below(self, directory: str) -> str:
        """Return what ``tuneserve serve`` is told where ``root`` is found as ``directory/name``."""
        return "/".join(filter(None, (directory, self.name, self.inside)))

    def beside(self, directory: str) -> str:
        """Return the same where only what ``tuneserve serve`` reads was copied: of a snapshot, its own files."""
        return f"{directory}/{self.name}" if self.hub else self.below(directory)


def model_part(source: ResolvedSource) -> Part:
    """Return what ``source`` itself is: a model, or an adapter without its base."""
    return _part("model", source.adapter_dir or source.weights_file or source.model_dir)


def base_part(source: ResolvedSource) -> Part | None:
    """Return the base of an adapter, None where ``source`` is a whole model."""
    return None if source.adapter_dir is None else _part("base", source.weights_file or source.model_dir)


def adapter_part(name: str, source: ResolvedSource) -> Part:
    """Return the adapter that requests choose by ``name``."""
    assert source.adapter_dir is not None, "the command line refuses others"
    return _part(f"adapter-{name}", source.adapter_dir)


def _part(name: str, path: Path) -> Part:
    path = path.absolute()
    if path.is_file():
        return _closed(Part(name=name, root=path.parent, inside=path.name, hub=None))
    repository = path.parent.parent
    if match := _SNAPSHOT.fullmatch("/".join(path.parts[-3:])):
        hub = f"{match['org']}/{match['name']}@{match['commit']}"
        # A snapshot is links to files beside it.
        return Part(name=name, root=repository, inside=f"snapshots/{path.name}", hub=hub)
    return _closed(Part(name=name, root=path, inside="", hub=None))


def _closed(part: Part) -> Part:
    """Check that nothing in a directory leads out of it, where a deployment would not find it."""
    root = part.root.resolve()
    for path in part.root.iterdir():
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise InputError(
                f"{path} is a link to a file elsewhere, which would be missing where it is served; "
                "copy the directory with 'cp -rL' and deploy the copy."
            )
    return part
