"""The Serve configuration of a plan (https://docs.ray.io/en/latest/serve/configure-serve-deployment.html)."""

from typing import Any

import msgspec

from tuneserve.deploy._deployment import PORT, Deployment
from tuneserve.deploy._files import from_template, to_yaml
from tuneserve.deploy._parts import Part
from tuneserve.deploy.ray._cluster import require_ray
from tuneserve.deploy.ray._options import RayOptions, read_options
from tuneserve.errors import InputError

# Machines of a cluster mount the same paths, and Ray on this machine is a cluster of one.
LOCAL = True
CONFIG = "serve.yaml"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def render(deployment: Deployment) -> dict[str, str]:
    """Return the files; see :class:`tuneserve.deploy.Target`.

    Raises:
        EngineError: Ray is not installed here.
        InputError: Ray cannot run the deployment.
    """
    require_ray()
    _check(deployment)
    options = plan_options(deployment)
    readme = from_template(
        "ray.md.j2", name=deployment.name, config=CONFIG, port=PORT, options=options, loopback=_is_one(deployment),
        paths=[str(part.path) for part in deployment.parts if part.hub is None], vllm=options.engine == "vllm",
    )  # fmt: skip
    return {"README.md": readme, CONFIG: to_yaml(serve_config(options, host=_host(deployment)))}


def serve_config(options: RayOptions, *, host: str, port: int = PORT, name: str = "tuneserve") -> dict[str, Any]:
    """Return a Serve configuration with one application; its ``args`` are the options that are not left as they are."""
    given = msgspec.to_builtins(options)
    default = msgspec.to_builtins(RayOptions(source=""))
    told = {key: value for key, value in given.items() if key == "source" or value != default[key]}
    return {
        "proxy_location": "HeadOnly" if host in _LOOPBACK else "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": [
            {"name": name, "route_prefix": "/", "import_path": "tuneserve.deploy.ray:app", "args": told},
        ],
    }


def plan_options(deployment: Deployment) -> RayOptions:
    """Return the arguments of the application that a plan asks for: as many replicas as it has, one to begin with."""
    plan = deployment.plan
    replicas = plan.taken.replicas
    each = -(-replicas // plan.machine.count)
    cores = (plan.machine.cores or 1) // each
    adapters = {name: _source(part) for name, part in deployment.adapters.items()}
    return read_options(
        {
            "source": _source(deployment.model),
            "name": plan.model.source.name,
            "base": None if deployment.base is None else _source(deployment.base),
            "engine": plan.engine,
            "adapters": adapters,
            "context": plan.wish.context,
            "max_running": plan.max_running,
            "tensor_parallel": plan.taken.tensor,
            "verify": deployment.verify,
            "gpus": plan.taken.tensor if plan.machine.gpus else 0,
            "cpus": 1 if plan.machine.gpus else max(1, cores),
            "max_replicas": replicas,
            "drain_seconds": max(1, deployment.drain_seconds),
            "api_keys": str(deployment.key_file),
            "allowed_hosts": list(_LOOPBACK) if _is_one(deployment) else [],
        }
    )


def _check(deployment: Deployment) -> None:
    plan = deployment.plan
    if plan.taken.pipeline > 1:
        raise InputError(
            f"the plan spreads a replica over {plan.taken.pipeline} machines, and here each is on one; use --target "
            "kubernetes, or --hardware with more GPUs per machine."
        )
    deployment.refuse("image", "volume", "model_image", "nodes")


def _is_one(deployment: Deployment) -> bool:
    return deployment.plan.machine.count == 1


def _host(deployment: Deployment) -> str:
    return _LOOPBACK[0] if _is_one(deployment) else "0.0.0.0"  # noqa: S104


def _source(part: Part) -> str:
    """Return what each machine of the cluster is told: where it can download the same files, it does."""
    return part.hub or str(part.path)
