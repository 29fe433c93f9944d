"""What a pod takes of its node and its namespace: GPUs, processors, memory, disk, and the volumes with its files."""

from typing import Any

from tuneserve.deploy._deployment import Deployment

GPU = "nvidia.com/gpu"
KEYS_SECRET, HUB_SECRET = "api-keys", "hub-token"
_SHARED_GIBIBYTES = 8


def shares_memory(deployment: Deployment) -> bool:
    """Say whether processes of a pod pass data through shared memory: NCCL between GPUs, Ray between nodes."""
    return deployment.plan.taken.tensor * deployment.plan.taken.pipeline > 1


def resources(deployment: Deployment) -> dict[str, Any]:
    """Return what the scheduler has to find: the plan's GPUs, or the memory that the plan counts on."""
    plan, fit = deployment.plan, deployment.plan.taken.fit
    assert fit is not None, "only what fits is taken"
    disk = {"ephemeral-storage": f"{_mebibytes(_copied_bytes(deployment)) + 1024}Mi"}
    if plan.machine.kind == "nvidia":
        count = plan.taken.tensor
        gpus = {GPU: str(count)}
        # A process for each GPU, and three for gateway, scheduler and supervision.
        gibibytes = 8 + 8 * count + (_SHARED_GIBIBYTES if shares_memory(deployment) else 0)
        return {"requests": {"cpu": str(3 + count), "memory": f"{gibibytes}Gi", **disk, **gpus}, "limits": gpus}
    memory = f"{_mebibytes(fit.weights + fit.overhead + fit.cache * plan.max_running) + 1024}Mi"
    # Of a node's cores the system keeps a part, so all of them are never free.
    cpu = f"{max(500, 1000 * ((plan.machine.cores or 1) - 1))}m"
    return {"requests": {"cpu": cpu, "memory": memory, **disk}, "limits": {"memory": memory}}


def _copied_bytes(deployment: Deployment) -> int:
    """Return how many bytes of weights a pod writes to its node's disk before it serves."""
    return 0 if deployment.volume is not None else deployment.plan.taken.weights or 0


def volumes(deployment: Deployment) -> list[dict[str, Any]]:
    """Return every volume that a container may mount."""
    copied = _copied_bytes(deployment)
    downloaded = 0 if deployment.has_models else copied
    if deployment.volume is not None:
        model: dict[str, Any] = {"persistentVolumeClaim": {"claimName": deployment.volume, "readOnly": True}}
    else:
        model = {"emptyDir": {"sizeLimit": f"{_mebibytes(copied * 2) + 1024}Mi"}}
    return [
        {"name": "cache", "emptyDir": {"sizeLimit": f"{_mebibytes(downloaded + downloaded // 4) + 10240}Mi"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "2Gi"}},
        {"name": "keys", "secret": _secret(deployment, KEYS_SECRET)},
        {"name": "hub", "secret": {**_secret(deployment, HUB_SECRET), "optional": True}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{_SHARED_GIBIBYTES}Gi"}},
        {"name": "model", **model},
    ]


def _secret(deployment: Deployment, suffix: str) -> dict[str, Any]:
    return {"secretName": f"{deployment.name}-{suffix}", "defaultMode": 0o440}


def _mebibytes(count: int) -> int:
    return -(-count // 2**20)
