"""Whether a running cluster can hold the application: asked before anything of it is started."""

from tuneserve.deploy.ray._options import RayOptions
from tuneserve.deploy.ray._sources import local_paths, missing, require
from tuneserve.errors import EngineError, HardwareError

_LOOK_SECONDS = 60.0


def require_ray() -> None:
    """Check that Ray Serve can be imported.

    Raises:
        EngineError: it is not installed.
    """
    try:
        import ray.serve  # noqa: F401
    except ImportError:
        raise EngineError("Ray Serve is not installed here; run: pip install 'tuneserve[ray]'.") from None


def check_cluster(options: RayOptions) -> None:
    """Check that the connected cluster has room for the fewest replicas, and that its machines see the files.

    Raises:
        HardwareError: it has too few GPUs or CPUs.
        SourceError: a machine does not see a path.
        EngineError: a machine did not answer.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    check_room(options, [node["Resources"] for node in nodes])
    paths = local_paths(options)
    if not paths:
        return
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(missing)
    asked = {
        node["NodeManagerHostname"]: look.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(paths)
        for node in nodes
        if not options.gpus or node["Resources"].get("GPU")
    }
    for machine, answer in asked.items():
        try:
            require(ray.get(answer, timeout=_LOOK_SECONDS), machine)
        except RayError as error:
            raise EngineError(
                f"the machine {machine} of the cluster does not answer ({type(error).__name__}); see 'ray status'."
            ) from None


def check_room(options: RayOptions, machines: list[dict[str, float]]) -> None:
    """Check that machines with these resources hold ``min_replicas``.

    Raises:
        HardwareError: they do not.
    """
    if options.gpus and not any(machine.get("GPU") for machine in machines):
        raise HardwareError(
            f"each replica needs {options.gpus:g} GPUs and the cluster has none; add machines with GPUs, or plan with "
            "--hardware cpu."
        )
    room = sum(_fits(options, machine) for machine in machines)
    if room < options.min_replicas:
        needs = f"{options.gpus:g} GPUs and {options.cpus:g} CPUs" if options.gpus else f"{options.cpus:g} CPUs"
        raise HardwareError(
            f"the cluster has room for {room} of {options.min_replicas} replicas, which need {needs} each on one "
            "machine; add machines, or lower min_replicas."
        )


def _fits(options: RayOptions, machine: dict[str, float]) -> int:
    counts = [
        int(machine.get(resource, 0.0) // needed)
        for resource, needed in (("CPU", options.cpus), ("GPU", options.gpus))
        if needed
    ]
    return min(counts, default=options.min_replicas)
