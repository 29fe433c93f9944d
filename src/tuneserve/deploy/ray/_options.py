"""What an application of replicas serves, and how: the ``args`` of the Serve configuration."""

import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from tuneserve.errors import InputError

_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MOST = {
    "max_running": 4096, "min_replicas": 10_000, "max_replicas": 10_000, "gateways": 1000, "tensor_parallel": 64,
    "prefix_blocks": 1024,
}  # fmt: skip


class RayOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The arguments of the application.

    ``source`` is a path that every machine of the cluster sees, a hub id, or a built-in model; ``adapters`` are paths
    by the names that requests give. ``cpus`` and ``gpus`` are what Ray sets aside for each engine replica, of which
    there are ``min_replicas`` to ``max_replicas``: one more whenever more than ``max_running`` sequences per replica
    run or wait. Requests that agree in their adapter and their first ``prefix_blocks`` blocks of 16 tokens meet on one
    replica. A replica may take ``start_seconds`` to load, and a request wait ``queue_seconds`` for one. ``verify``
    compares what each replica serves with the source. ``api_keys`` is a file on the machines of the gateways.
    """

    source: str
    name: str | None = None
    base: str | None = None
    engine: str = "native"
    adapters: dict[str, str] = {}
    context: int | None = None
    max_running: int = 16
    dtype: str = "auto"
    tensor_parallel: int = 1
    verify: bool = True
    cpus: float = 1.0
    gpus: float = 0.0
    min_replicas: int = 1
    max_replicas: int = 1
    gateways: int = 1
    prefix_blocks: int = 4
    routing: Literal["prefix", "random"] = "prefix"
    start_seconds: float = 1800.0
    queue_seconds: float = 600.0
    drain_seconds: float = 120.0
    api_keys: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    max_queue: int = 1024


def read_options(args: Mapping[str, Any]) -> RayOptions:
    """Read the arguments of the application.

    Raises:
        InputError: one is missing, unknown, or out of its range.
    """
    try:
        options = msgspec.convert(args, RayOptions)
    except msgspec.ValidationError as error:
        raise InputError(f"the args of the application are not usable ({error}); correct them.") from None
    for name, most in _MOST.items():
        value = getattr(options, name)
        if not 1 <= value <= most:
            raise InputError(f"{name} is {value}, outside 1 to {most}; choose a number within.")
    if options.min_replicas > options.max_replicas:
        raise InputError(
            f"min_replicas {options.min_replicas} is above max_replicas {options.max_replicas}; swap them."
        )
    for name in ("cpus", "gpus", "max_queue"):
        if not 0 <= getattr(options, name) <= 1e6:
            raise InputError(f"{name} is outside 0 to 1000000; choose a number within.")
    for name in ("start_seconds", "queue_seconds", "drain_seconds"):
        if not 0 < getattr(options, name) <= 86400:
            raise InputError(f"{name} is outside 0 to 86400; choose a number of seconds within.")
    for name in options.adapters:
        if not _ADAPTER_NAME.fullmatch(name):
            raise InputError(f"the adapter name {name[:100]!r} is not of letters, digits, . _ and -; choose another.")
    return options
