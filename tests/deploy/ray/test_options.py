"""Protects: the arguments of the application are read whole, and what is out of range is refused with the remedy."""

import re
from typing import Any

import pytest

from tuneserve.deploy.ray import RayOptions, read_options
from tuneserve.errors import InputError


def test_what_is_given_is_read_and_the_rest_stays_as_it_is() -> None:
    options = read_options({"source": "demo", "adapters": {"a": "/a"}, "gpus": 0.5, "allowed_hosts": ["x.example"]})
    assert options == RayOptions(source="demo", adapters={"a": "/a"}, gpus=0.5, allowed_hosts=("x.example",))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({}, "missing required field `source`"),
        ({"source": 3}, "Expected `str`"),
        ({"source": "demo", "speed": "high"}, "unknown field `speed`"),
        ({"source": "demo", "routing": "nearest"}, "Invalid enum value 'nearest'"),
        ({"source": "demo", "adapters": ["/a"]}, "Expected `object`"),
        ({"source": "demo", "max_running": 0}, "max_running is 0, outside 1 to 4096; choose a number within"),
        ({"source": "demo", "gateways": 1001}, "gateways is 1001, outside 1 to 1000"),
        ({"source": "demo", "prefix_blocks": -1}, "prefix_blocks is -1, outside 1 to 1024"),
        ({"source": "demo", "min_replicas": 3, "max_replicas": 2}, "min_replicas 3 is above max_replicas 2; swap them"),
        ({"source": "demo", "gpus": -1}, "gpus is outside 0 to 1000000"),
        ({"source": "demo", "cpus": float("nan")}, "cpus is outside 0 to 1000000"),
        ({"source": "demo", "queue_seconds": 0}, "queue_seconds is outside 0 to 86400"),
        ({"source": "demo", "start_seconds": float("inf")}, "start_seconds is outside 0 to 86400"),
        ({"source": "demo", "adapters": {"a/../b": "/a"}}, "'a/../b' is not of letters, digits"),
        ({"source": "demo", "adapters": {"a" * 101: "/a"}}, "choose another"),
    ],
)
def test_what_cannot_be_is_refused(args: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        read_options(args)
