"""Protects: without Ray, or on a cluster without room for the fewest replicas, nothing is started."""

import re
import sys
from typing import Any

import pytest

from tuneserve.deploy.ray import read_options, require_ray
from tuneserve.deploy.ray._cluster import check_room
from tuneserve.errors import EngineError, HardwareError


def options(**args: Any) -> Any:
    return read_options({"source": "demo", "max_replicas": 4, **args})


def test_without_ray_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=re.escape("run: pip install 'tuneserve[ray]'.")):
        require_ray()


@pytest.mark.parametrize(
    ("args", "machines"),
    [
        ({"cpus": 2}, [{"CPU": 2.0}]),
        ({"cpus": 0}, [{"CPU": 1.0}]),
        ({"gpus": 2, "min_replicas": 3}, [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 3.0}]),
        ({"gpus": 0.5, "min_replicas": 2}, [{"CPU": 8.0}, {"CPU": 2.0, "GPU": 1.0}]),
    ],
)
def test_a_cluster_with_room_passes(args: dict[str, Any], machines: list[dict[str, float]]) -> None:
    check_room(options(**args), machines)


@pytest.mark.parametrize(
    ("args", "machines", "says"),
    [
        ({"gpus": 1}, [{"CPU": 64.0}, {"CPU": 64.0, "GPU": 0.0}], "each replica needs 1 GPUs and the cluster has none"),
        # Four GPUs, and no two of them in one machine.
        ({"gpus": 2}, [{"CPU": 8.0, "GPU": 1.0}] * 4, "room for 0 of 1 replicas, which need 2 GPUs and 1 CPUs each"),
        ({"gpus": 1, "cpus": 6, "min_replicas": 2}, [{"CPU": 8.0, "GPU": 8.0}], "room for 1 of 2 replicas"),
        ({"cpus": 3, "min_replicas": 3}, [{"CPU": 4.0}, {"CPU": 4.0}], "room for 2 of 3 replicas, which need 3 CPUs"),
        ({}, [], "the cluster has room for 0 of 1 replicas"),
    ],
)
def test_a_cluster_without_is_refused(args: dict[str, Any], machines: list[dict[str, float]], says: str) -> None:
    with pytest.raises(HardwareError, match=re.escape(says)):
        check_room(options(**args), machines)
