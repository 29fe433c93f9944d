"""The pod that serves: one container, hardened, with its model mounted, probed and drained."""

from typing import Any

from tuneserve.deploy._deployment import PORT, Deployment
from tuneserve.deploy._image import CACHE, USER, program_options

MODELS = "/models"
KEYS = "/etc/tuneserve/keys.toml"
KEYS_SECRET, HUB_SECRET = "api-keys", "hub-token"
GPU = "nvidia.com/gpu"
# Endpoints forget a pod while it sleeps; then running requests finish, then connections and the engine close.
_FORGETTING_SECONDS, _CLOSING_SECONDS = 5, 15
_PATIENCE_SECONDS, _PERIOD_SECONDS = 600, 10
# Weights are read up to three times from a volume that may be slow: for the engine, its kernels and the comparison.
_STARTING_SECONDS, _STARTING_BYTES_PER_SECOND = 900, 50_000_000
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
    container = {
        "name": "serve",
        "image": deployment.image,
        "args": _serve_arguments(deployment),
        "env": _environment(deployment),
        "ports": [{"name": "http", "containerPort": PORT}],
        "startupProbe": _probe("/ready", starting_seconds(deployment)),
        "livenessProbe": _probe("/health", _PATIENCE_SECONDS),
        "readinessProbe": _probe("/ready", _PERIOD_SECONDS),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_FORGETTING_SECONDS)]}}},
        **_common(deployment),
    }
    return pod(deployment, labels, container)


def pod(deployment: Deployment, labels: dict[str, str], container: dict[str, Any]) -> dict[str, Any]:
    """Return the template of a pod with ``container``."""
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _FORGETTING_SECONDS + deployment.drain_seconds + _CLOSING_SECONDS,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": _volumes(deployment),
    }  # fmt: skip
    if deployment.model_image is not None:
        spec["initContainers"] = [_model_copy(deployment.model_image)]
    if deployment.plan.machine.kind == "nvidia":
        spec["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    return {"metadata": {"labels": labels}, "spec": spec}


def starting_seconds(deployment: Deployment) -> int:
    """Return how long a pod may take until it is ready; then it is started anew."""
    return _STARTING_SECONDS + (deployment.plan.taken.weights or 0) // _STARTING_BYTES_PER_SECOND


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
    if not has_models(deployment):
        return {part.name: part.hub or "" for part in deployment.parts}
    # Copied without the rest of the hub's cache, so a snapshot's files lie in the part's directory itself.
    return {part.name: part.beside(MODELS) for part in deployment.parts}


def _environment(deployment: Deployment) -> list[dict[str, Any]]:
    if has_models(deployment):
        return [{"name": "HF_HUB_OFFLINE", "value": "1"}]
    token = {"name": f"{deployment.name}-{HUB_SECRET}", "key": "token", "optional": True}
    return [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": token}}]


def _common(deployment: Deployment) -> dict[str, Any]:
    return {
        "resources": _resources(deployment),
        "securityContext": dict(_RESTRICTED),
        "volumeMounts": [
            {"name": "cache", "mountPath": CACHE},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 (the container's own)
            {"name": "keys", "mountPath": KEYS.rpartition("/")[0], "readOnly": True},
            *([{"name": "shm", "mountPath": "/dev/shm"}] if deployment.plan.taken.tensor > 1 else []),  # noqa: S108
            *([{"name": "model", "mountPath": MODELS, "readOnly": True}] if has_models(deployment) else []),
        ],
    }


def has_models(deployment: Deployment) -> bool:
    """Say whether the model is mounted; else it is downloaded from the hub."""
    return deployment.volume is not None or deployment.model_image is not None


def _resources(deployment: Deployment) -> dict[str, Any]:
    """Return what the scheduler has to find: on a GPU its number, else the memory that the plan counts on."""
    plan, fit = deployment.plan, deployment.plan.taken.fit
    assert fit is not None, "only what fits is taken"
    if plan.machine.kind == "nvidia":
        gpus = {GPU: str(plan.taken.tensor)}
        return {"requests": {"cpu": "4", "memory": "16Gi", **gpus}, "limits": gpus}
    memory = f"{_mebibytes(fit.weights + fit.overhead + fit.cache * plan.max_running) + 1024}Mi"
    return {"requests": {"cpu": str(plan.machine.cores or 1), "memory": memory}, "limits": {"memory": memory}}


def _volumes(deployment: Deployment) -> list[dict[str, Any]]:
    weights = deployment.plan.taken.weights or 0
    downloaded = 0 if has_models(deployment) else weights
    size = f"{_mebibytes(downloaded + downloaded // 4) + 10240}Mi"
    volumes: list[dict[str, Any]] = [
        {"name": "cache", "emptyDir": {"sizeLimit": size}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "2Gi"}},
        {"name": "keys", "secret": {"secretName": f"{deployment.name}-{KEYS_SECRET}", "defaultMode": 0o440}},
    ]
    if deployment.plan.taken.tensor > 1:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}})
    if deployment.volume is not None:
        claim = {"claimName": deployment.volume, "readOnly": True}
        volumes.append({"name": "model", "persistentVolumeClaim": claim})
    if deployment.model_image is not None:
        volumes.append({"name": "model", "emptyDir": {"sizeLimit": f"{_mebibytes(weights * 2) + 1024}Mi"}})
    return volumes


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


def _mebibytes(count: int) -> int:
    return -(-count // 2**20)
