"""What targets that run on this machine have in common."""

from tuneserve.deploy._deployment import Deployment
from tuneserve.errors import InputError

# What leaving takes after the last answer: connections are closed, then the engine is.
CLOSING_SECONDS = 15
_OF_CLUSTERS = ("volume", "model_image", "nodes")


def check_local(deployment: Deployment, *, also: tuple[str, ...] = ()) -> None:
    """Check that one Linux machine can run it, and that no option asks for what only a cluster has.

    Raises:
        InputError: it cannot, or one does.
    """
    machine = deployment.plan.machine
    if machine.count > 1:
        raise InputError(
            f"{machine.name} is {machine.count} machines and these files are for one; use --target kubernetes."
        )
    if machine.kind == "mac":
        raise InputError("this target runs on Linux, not on a Mac; run 'tuneserve plan' for the commands there.")
    for option in (*_OF_CLUSTERS, *also):
        if getattr(deployment, option) is not None:
            raise InputError(f"--{option.replace('_', '-')} is not for this target; leave it out.")


def gpu_indices(deployment: Deployment, replica: int) -> list[str]:
    """Return the numbers of the GPUs that a replica has; none without GPUs."""
    if deployment.plan.machine.kind != "nvidia":
        return []
    count = deployment.plan.taken.tensor
    return [str(index) for index in range(replica * count, (replica + 1) * count)]
