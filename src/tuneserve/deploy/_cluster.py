"""What a cluster has, from what ``kubectl get nodes --output json`` printed."""

import json
from pathlib import Path
from typing import Any

from tuneserve.deploy._deployment import Deployment
from tuneserve.deploy._resources import GPU
from tuneserve.errors import HardwareError, InputError

_MAX_BYTES = 256 << 20


def check_cluster(deployment: Deployment, path: Path) -> None:
    """Check that the nodes have the GPUs that the plan needs.

    Raises:
        HardwareError: they do not.
        InputError: the file is not what ``kubectl`` printed.
    """
    counts = _gpus(path)
    taken = deployment.plan.taken
    if deployment.plan.machine.kind != "nvidia":
        return
    needed = taken.replicas * taken.pipeline
    room = sum(count // taken.tensor for count in counts)
    if not any(counts):
        raise HardwareError(
            f"none of the cluster's {len(counts)} nodes offers {GPU}, and the plan needs {needed * taken.tensor}; add "
            "GPU nodes, install NVIDIA's device plugin on those there are, or plan with --hardware cpu-16c-64GB."
        )
    if room < needed:
        raise HardwareError(
            f"the cluster's nodes have room for {room} pods of {taken.tensor} GPUs and the plan needs {needed}; add "
            "GPU nodes, or plan with the --hardware that there is."
        )


def _gpus(path: Path) -> list[int]:
    """Return how many GPUs each node offers."""
    bad = InputError(f"{path} is not a list of nodes; write it with 'kubectl get nodes --output json > {path}'.")
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise bad
        items: list[dict[str, Any]] = json.loads(data)["items"]
        return [_count(node["status"]["allocatable"].get(GPU, "0")) for node in items]
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name a file that can.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise bad from None


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise ValueError
    return int(text)
