"""The Serve application: gateways in front of engine replicas."""

from typing import Any

from tuneserve.deploy.ray._cluster import check_cluster
from tuneserve.deploy.ray._options import RayOptions, read_options

# A replica that does not start twice will not the third time.
_ATTEMPTS = 2
# While all replicas are full: a free place is not left empty for long.
_BACKOFF_SECONDS = 0.005
_MOST_BACKOFF_SECONDS = 0.05
_HEALTH_PERIOD_SECONDS = 5.0
_HEALTH_TIMEOUT_SECONDS = 30.0
# A gateway waits for text and network, and takes as many requests as its own limits let in.
_GATEWAY_REQUESTS = 10_000


def app(args: dict[str, Any]) -> Any:
    """Build the application; the ``import_path`` of a Serve configuration is ``tuneserve.deploy.ray:app``.

    Args:
        args: see :class:`RayOptions`.

    Returns:
        A :class:`ray.serve.Application`.

    Raises:
        InputError: an argument is not usable, or a machine does not see the source.
        HardwareError: the cluster does not have what the replicas need.
    """
    options = read_options(args)
    check_cluster(options)
    return build(options)


def build(options: RayOptions) -> Any:
    """Build the application without looking at the cluster."""
    from ray import serve
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig

    from tuneserve.deploy.ray._gateway import Gateway
    from tuneserve.deploy.ray._replica import Replica
    from tuneserve.deploy.ray._router import PrefixRouter, RandomRouter

    common = {
        "health_check_period_s": _HEALTH_PERIOD_SECONDS,
        "health_check_timeout_s": _HEALTH_TIMEOUT_SECONDS,
        "graceful_shutdown_timeout_s": options.drain_seconds,
        "max_constructor_retry_count": _ATTEMPTS,
    }
    engine = serve.deployment(
        name="engine",
        max_ongoing_requests=options.max_running,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=options.min_replicas,
            initial_replicas=options.min_replicas,
            max_replicas=options.max_replicas,
            target_ongoing_requests=options.max_running,
        ),
        request_router_config=RequestRouterConfig(
            request_router_class=PrefixRouter if options.routing == "prefix" else RandomRouter,
            initial_backoff_s=_BACKOFF_SECONDS,
            max_backoff_s=_MOST_BACKOFF_SECONDS,
        ),
        **common,
    )(Replica)
    gateway = serve.deployment(
        name="gateway",
        num_replicas=options.gateways,
        max_ongoing_requests=_GATEWAY_REQUESTS,
        ray_actor_options={"num_cpus": 0},
        **common,
    )(serve.ingress()(Gateway))
    return gateway.bind(options, engine.bind(options))
