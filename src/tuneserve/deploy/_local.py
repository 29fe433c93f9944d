"""What targets that run on this machine have in common."""

from tuneserve.deploy._deployment import Deployment
from tuneserve.errors import InputError


def check_local(deployment: Deployment) -> None:
    """Check that one machine can run it, and that no option asks for what only a cluster has.

    Raises:
        InputError: it cannot, or one does.
    """
    machine = deployment.plan.machine
    if machine.count > 1:
        raise InputError(
            f"{machine.name} is {machine.count} machines and these files are for one; use --target kubernetes."
        )
    deployment.refuse("volume", "model_image", "nodes")


def gpu_indices(deployment: Deployment, replica: int) -> list[str]:
    """Return the numbers of the GPUs that a replica has; none without GPUs."""
    if deployment.plan.machine.kind != "nvidia":
        return []
    count = deployment.plan.taken.tensor
    return [str(index) for index in range(replica * count, (replica + 1) * count)]
