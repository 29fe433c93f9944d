"""Ray Serve: gateways in front of engine replicas. Importing this does not import Ray.

As a target it has :func:`render`; on the cluster, Serve imports :func:`app`.
"""

from tuneserve.deploy.ray._app import app
from tuneserve.deploy.ray._cluster import check_cluster, require_ray
from tuneserve.deploy.ray._options import RayOptions, read_options
from tuneserve.deploy.ray._render import LOCAL, render, serve_config

__all__ = ["LOCAL", "RayOptions", "app", "check_cluster", "read_options", "render", "require_ray", "serve_config"]
