"""systemd: one hardened unit per replica, on this machine (systemd.exec(5), systemd.service(5))."""

import sys
from pathlib import Path

import tuneserve
from tuneserve.deploy._deployment import CLOSING_SECONDS, PORT, Deployment
from tuneserve.deploy._files import from_template
from tuneserve.deploy._local import check_local, gpu_indices
from tuneserve.engines.environments import require
from tuneserve.errors import InputError

LOCAL = True
_SYSTEM = Path("/usr")
# Where systemd puts credentials (systemd.exec(5)).
_KEY_FILE = "%d/keys.toml"
# What a unit's settings take for quotes, separators and variables, each by rules of its own.
_SPECIAL = frozenset("\"'\\:$")


def render(deployment: Deployment) -> dict[str, str]:
    """Return the files; see :class:`tuneserve.deploy.Target`."""
    check_local(deployment)
    deployment.refuse("image")
    replicas = range(deployment.plan.taken.replicas)
    ports = [PORT + index for index in replicas]
    units = {_unit(deployment, index): _describe(deployment, index) for index in replicas}
    readme = from_template(
        "systemd.md.j2", name=deployment.name, units=list(units), ports=ports,
        cuda=deployment.plan.machine.kind == "nvidia",
    )  # fmt: skip
    return {"README.md": readme, **units}


def _unit(deployment: Deployment, index: int) -> str:
    number = "" if deployment.plan.taken.replicas == 1 else f"-{index}"
    return f"tuneserve-{deployment.name}{number}.service"


def _describe(deployment: Deployment, index: int) -> str:
    options, program_paths = _engine(deployment)
    where = {part.name: _checked(part.path) for part in deployment.parts}
    arguments = deployment.serve(where, key_file=_KEY_FILE, host="127.0.0.1", port=PORT + index)
    command = [_checked(Path(sys.executable)), "-m", "tuneserve", *arguments, *options]
    unit = _unit(deployment, index).removesuffix(".service")
    roots = _outside_system([*program_paths, *(part.root for part in deployment.parts)])
    return from_template(
        "unit.service.j2", unit=unit, name=deployment.name, command=[_argument(each) for each in command],
        paths=[f'"{_path(path)}"' for path in roots], key_file=_path(deployment.key_file),
        devices=gpu_indices(deployment, index), loopback=_stays_on_loopback(deployment),
        stop_seconds=deployment.drain_seconds + CLOSING_SECONDS,
    )  # fmt: skip


def _stays_on_loopback(deployment: Deployment) -> bool:
    """Say whether nothing that it runs uses another address of the machine, as the libraries of other engines do."""
    return deployment.plan.engine == "native" and deployment.plan.taken.tensor == 1


def _engine(deployment: Deployment) -> tuple[list[str], list[Path]]:
    """Return the options that say where the engine is, and the directories of all programs."""
    paths = [Path(sys.prefix), Path(sys.base_prefix), Path(tuneserve.__file__).parents[1]]
    if deployment.plan.engine != "vllm":
        return [], paths
    python = require("vllm").python
    return ["--engine-python", str(python)], [*paths, python.parents[1]]


def _outside_system(paths: list[Path]) -> list[Path]:
    """Return those that a unit does not see anyway, without those inside another."""
    found: list[Path] = []
    for path in sorted({path.absolute() for path in paths}):
        if not any(path.is_relative_to(each) for each in (_SYSTEM, *found)):
            found.append(path)
    return found


def _argument(text: str) -> str:
    """Quote an argument of a command."""
    if text == _KEY_FILE:
        return f'"{text}"'
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def _checked(path: Path) -> str:
    _path(path)
    return str(path)


def _path(path: Path) -> str:
    """Return a path as settings take it.

    Raises:
        InputError: it has characters that they do not take as they are.
    """
    text = str(path)
    if any(letter in _SPECIAL or ord(letter) < 32 or ord(letter) == 127 for letter in text):
        raise InputError(
            f"{text[:200]!r} has quotes, colons, dollars, backslashes or control characters in it, which a unit cannot "
            "name; move it to another path."
        )
    return text.replace("%", "%%")
