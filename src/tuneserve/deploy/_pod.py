"""The pod that serves: one container, hardened, with its model mounted, probed and drained."""

from typing import Any

from tuneserve.deploy._deployment import CLOSING_SECONDS, PORT, Deployment
from tuneserve.deploy._image import CACHE, USER, program_options
from tuneserve.deploy._resources import GPU, resources, shares_memory, volumes

MODELS = "/models"
KEYS = "/etc/tuneserve/keys.toml"
HUB_TOKEN = "/etc/huggingface/token"  # noqa: S105 (a path)
# Endpoints forget a pod while it sleeps; then running requests finish.
_FORGETTING_SECONDS = 5
_PATIENCE_SECONDS, _PERIOD_SECONDS = 600, 10
PROGRAM = "/opt/tuneserve/bin/tuneserve"
_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


def _serve_arguments(deployment: Deployment) -> list[str]:
    """Return the arguments of ``tuneserve`` in a pod."""
    arguments = [*deployment.serve(_where(deployment), key_file=KEYS), *program_options(deployment)]
    # Else Kubernetes takes it for the name of a variable.
    return [argument.replace("$(", "$$(") for argument in arguments]


def serving_pod(deployment: Deployment, labels: dict[str, str]) -> dict[str, Any]:
    """Return the template of a pod that serves."""
    container: dict[str, Any] = {
        "name": "serve",
        "image": deployment.image,
        "args": _serve_arguments(deployment),
        "env": _environment(deployment),
        "ports": [{"name": "http", "containerPort": PORT}],
        "startupProbe": _probe("/ready", deployment.starting_seconds),
        "livenessProbe": _probe("/health", _PATIENCE_SECONDS),
        "readinessProbe": _probe("/ready", _PERIOD_SECONDS),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_FORGETTING_SECONDS)]}}},
        **_common(deployment),
    }
    container["volumeMounts"].append(_mount("keys", KEYS.rpartition("/")[0]))
    return pod(deployment, labels, container)


def pod(deployment: Deployment, labels: dict[str, str], container: dict[str, Any]) -> dict[str, Any]:
    """Return the template of a pod with ``container``."""
    first = [] if deployment.model_image is None else [_model_copy(deployment.model_image)]
    mounted = {mount["name"] for each in (*first, container) for mount in each["volumeMounts"]}
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _FORGETTING_SECONDS + deployment.drain_seconds + CLOSING_SECONDS,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [volume for volume in volumes(deployment) if volume["name"] in mounted],
    }  # fmt: skip
    if first:
        spec["initContainers"] = first
    if deployment.plan.machine.kind == "nvidia":
        spec["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    return {"metadata": {"labels": labels}, "spec": spec}


def worker_container(deployment: Deployment, command: str) -> dict[str, Any]:
    """Return a container that lends its GPUs to a leader, with the shell ``command``."""
    return {
        "name": "worker",
        "image": deployment.image,
        "command": ["sh", "-c", command],
        "env": _environment(deployment),
        **_common(deployment),
    }


def _where(deployment: Deployment) -> dict[str, str]:
    """Return what to tell ``tuneserve serve``: below the mounted model, or the hub's id of each part."""
    if not deployment.has_models:
        return {part.name: part.hub or "" for part in deployment.parts}
    # Copied without the rest of the hub's cache, so a snapshot's files lie in the part's directory itself.
    return {part.name: part.beside(MODELS) for part in deployment.parts}


def _environment(deployment: Deployment) -> list[dict[str, Any]]:
    if deployment.has_models:
        return [{"name": "HF_HUB_OFFLINE", "value": "1"}]
    return [{"name": "HF_TOKEN_PATH", "value": HUB_TOKEN}]


def _common(deployment: Deployment) -> dict[str, Any]:
    return {
        "resources": resources(deployment),
        "securityContext": dict(_RESTRICTED),
        "volumeMounts": [
            {"name": "cache", "mountPath": CACHE},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 (the container's own)
            *([{"name": "shm", "mountPath": "/dev/shm"}] if shares_memory(deployment) else []),  # noqa: S108
            _mount("model", MODELS) if deployment.has_models else _mount("hub", HUB_TOKEN.rpartition("/")[0]),
        ],
    }


def _mount(volume: str, path: str) -> dict[str, Any]:
    return {"name": volume, "mountPath": path, "readOnly": True}


def _model_copy(image: str) -> dict[str, Any]:
    return {
        "name": "model",
        "image": image,
        "command": ["cp", "-R", f"{MODELS}/.", "/target/"],
        "securityContext": dict(_RESTRICTED),
        "resources": {"requests": {"cpu": "1", "memory": "256Mi"}},
        "volumeMounts": [{"name": "model", "mountPath": "/target"}],
    }


def _probe(path: str, seconds: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": _PERIOD_SECONDS,
        "timeoutSeconds": 5,
        "failureThreshold": max(1, seconds // _PERIOD_SECONDS),
    }
