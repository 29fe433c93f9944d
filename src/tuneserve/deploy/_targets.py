"""The targets by name, each a module that is imported when it is asked for."""

from collections.abc import Mapping
from importlib import import_module
from typing import Protocol, cast

from tuneserve.deploy._deployment import Deployment
from tuneserve.errors import InputError

TARGETS: Mapping[str, str] = {
    "compose": "tuneserve.deploy.compose",
    "kubernetes": "tuneserve.deploy.kubernetes",
    "ray": "tuneserve.deploy.ray",
    "systemd": "tuneserve.deploy.systemd",
}


class Target(Protocol):
    """What the module of a target has."""

    # Whether the files are for this machine, so that hardware ``auto`` and files in its directories mean something.
    LOCAL: bool

    def render(self, deployment: Deployment) -> dict[str, str]:
        """Return the text of each file by its path below the output directory; nothing is written.

        Raises:
            InputError: the target cannot run the deployment; the message names why and the remedy.
        """


def find_target(name: str) -> Target:
    """Return the target called ``name``.

    Raises:
        InputError: there is none.
    """
    if name not in TARGETS:
        raise InputError(f"the target {name[:40]!r} is unknown; choose {', '.join(TARGETS)}.")
    return cast(Target, import_module(TARGETS[name]))
