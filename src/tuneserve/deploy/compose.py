"""Docker Compose (https://github.com/compose-spec/compose-spec): one service per replica, on this machine."""

from pathlib import Path
from typing import Any

from tuneserve.deploy._deployment import CLOSING_SECONDS, PORT, Deployment
from tuneserve.deploy._files import from_template, to_yaml
from tuneserve.deploy._image import CACHE, USER, image_files, program_options
from tuneserve.deploy._local import check_local, gpu_indices

LOCAL = True
_MODELS = "/models"
_KEYS = "/run/secrets/api-keys"


def render(deployment: Deployment) -> dict[str, str]:
    """Return the files; see :class:`tuneserve.deploy.Target`."""
    check_local(deployment)
    replicas = range(deployment.plan.taken.replicas)
    document = {
        "name": deployment.name,
        "services": {_service(deployment, index): _describe(deployment, index) for index in replicas},
        "volumes": {"cache": {}},
        "secrets": {"api-keys": {"file": _literal(str(deployment.key_file))}},
    }
    readme = from_template(
        "compose.md.j2", name=deployment.name, ports=[PORT + index for index in replicas], keys=deployment.key_file,
        cuda=deployment.plan.machine.kind == "nvidia", image=_image(deployment),
    )  # fmt: skip
    return {"README.md": readme, "compose.yaml": to_yaml(document), **image_files(deployment)}


def _service(deployment: Deployment, index: int) -> str:
    return "serve" if deployment.plan.taken.replicas == 1 else f"serve-{index}"


def _image(deployment: Deployment) -> str:
    return deployment.image or f"tuneserve-{deployment.name}"


def _describe(deployment: Deployment, index: int) -> dict[str, Any]:
    plan = deployment.plan
    where = {part.name: part.below(_MODELS) for part in deployment.parts}
    command = [*deployment.serve(where, key_file=_KEYS), *program_options(deployment)]
    mounts = [_mount(part.root, f"{_MODELS}/{part.name}") for part in deployment.parts]
    cache = {"type": "volume", "source": "cache", "target": CACHE}
    service: dict[str, Any] = {
        "image": _image(deployment),
        "build": {"context": "."},
        "command": [_literal(argument) for argument in command],
        "environment": {"HF_HUB_OFFLINE": "1"},
        "init": True,
        "user": f"{USER}:{USER}",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "pids_limit": 4096,
        "tmpfs": ["/tmp:size=1g,mode=1777"],  # noqa: S108 (the container's own)
        "volumes": [*mounts, cache],
        "secrets": [{"source": "api-keys", "target": _KEYS}],
        # Behind a proxy that speaks TLS; a published port bypasses the host's firewall.
        "ports": [f"127.0.0.1:{PORT + index}:{PORT}"],
        # The image says how its health is asked for.
        "healthcheck": {"start_period": f"{deployment.starting_seconds}s"},
        "restart": "unless-stopped",
        "stop_grace_period": f"{deployment.drain_seconds + CLOSING_SECONDS}s",
        "logging": {"driver": "json-file", "options": {"max-size": "50m", "max-file": "5"}},
    }
    if devices := gpu_indices(deployment, index):
        reserved = {"driver": "nvidia", "device_ids": devices, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [reserved]}}}
        if plan.taken.tensor > 1:
            # NCCL passes data between the GPUs of a machine through it.
            service["shm_size"] = "8g"
    return service


def _mount(source: Path, target: str) -> dict[str, Any]:
    bind = {"create_host_path": False}
    return {"type": "bind", "source": _literal(str(source)), "target": target, "read_only": True, "bind": bind}


def _literal(text: str) -> str:
    """Keep Compose from taking what follows a dollar for the name of a variable."""
    return text.replace("$", "$$")
