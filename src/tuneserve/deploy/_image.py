"""The container image: a Dockerfile in two stages, and the versions that go into it."""

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

from tuneserve._version import __version__
from tuneserve.deploy._deployment import PORT, Deployment
from tuneserve.deploy._files import from_template
from tuneserve.engines.environments import PINNED
from tuneserve.errors import InputError

USER = 10001
CACHE = "/cache"
VLLM = "/opt/vllm"
# vLLM 0.33 does not bring it along.
RAY = "ray[cgraph]==2.60.0"
_WHEELS = f"""# Wheels

`docker build` looks here before it asks the package index. Where that does not have tuneserve {__version__}, make its
wheel from a checkout:

    pip wheel --no-deps --wheel-dir wheels PATH_OF_THE_CHECKOUT
"""


def image_files(deployment: Deployment) -> dict[str, str]:
    """Return what ``docker build`` needs, by path."""
    cuda, vllm = deployment.plan.machine.kind == "nvidia", deployment.plan.engine == "vllm"
    pinned = PINNED["vllm"] if cuda else PINNED["vllm"].cpu
    assert pinned is not None, "vLLM has a build for processors"
    engine = [*pinned.requirements, *([RAY] if deployment.plan.taken.pipeline > 1 else [])]
    computes = cuda and not vllm
    pins = constraints(cuda=computes)
    dockerfile = from_template(
        "Dockerfile.j2", cuda=cuda, cpu_torch=None if computes else pins["torch"], version=__version__, user=USER,
        cache=CACHE, port=PORT, vllm_directory=VLLM, vllm=engine if vllm else [], vllm_without=pinned.without,
        vllm_torch=None if pinned.torch is None else f"{pinned.torch}+cpu",
    )  # fmt: skip
    return {
        "Dockerfile": dockerfile,
        "constraints.txt": "".join(f"{name}=={version}\n" for name, version in pins.items()),
        "wheels/README.md": _WHEELS,
    }


def program_options(deployment: Deployment) -> list[str]:
    """Return the options of ``tuneserve serve`` that say where the image has the engine."""
    return ["--engine-python", f"{VLLM}/bin/python"] if deployment.plan.engine == "vllm" else []


def constraints(*, cuda: bool) -> dict[str, str]:
    """Return the version of each package that tuneserve needs here, PyTorch's for ``cuda`` or for processors.

    Raises:
        InputError: tuneserve was not installed, so that what it needs is not known.
    """
    found: dict[str, str] = {}
    waiting = ["tuneserve"]
    while waiting:
        name = _normal(waiting.pop())
        package = _installed(name)
        # What belongs to a build of PyTorch is pinned by it.
        if name in found or package is None or name == "triton" or name.startswith(("nvidia-", "cuda-")):
            continue
        found[name] = package.version
        for text in package.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    if "torch" not in found:
        raise InputError("tuneserve is not installed as a package here; install it with pip, and deploy again.")
    torch = found["torch"].partition("+")[0]
    found["torch"] = torch if cuda else f"{torch}+cpu"
    return {name: version for name, version in sorted(found.items()) if name != "tuneserve"}


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
