"""An application of gateways and engine replicas for Ray Serve; importing it does not import Ray."""

from tuneserve.deploy.ray._app import app
from tuneserve.deploy.ray._cluster import check_cluster, require_ray
from tuneserve.deploy.ray._options import RayOptions, read_options

__all__ = ["RayOptions", "app", "check_cluster", "read_options", "require_ray"]
