"""Protects: the simulated router, by what queueing theory says of systems that it contains as special cases."""

import importlib.util
import math
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

_PATH = Path(__file__).parents[2] / "benchmarks" / "scale" / "router.py"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("router", _PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["router"] = module
    spec.loader.exec_module(module)
    return module


router = _load()


def poisson(rate: float, count: int, adapters: int = 1) -> list[Any]:
    """Return requests that arrive at random and take exponentially distributed tokens, one on average."""
    draw, now, found = random.Random(7), 0.0, []
    for _ in range(count):
        now += draw.expovariate(rate)
        found.append(router.Request(now, draw.randrange(adapters), draw.expovariate(1.0)))
    return found


def erlang_c_wait(rate: float, servers: int) -> float:
    """Return the mean wait in M/M/c with a service rate of 1 (Erlang 1917)."""
    terms = [rate**k / math.factorial(k) for k in range(servers)]
    last = rate**servers / math.factorial(servers) / (1 - rate / servers)
    return last / (sum(terms) + last) / (servers - rate)


@pytest.mark.parametrize(("servers", "rate"), [(1, 0.7), (4, 3.2), (16, 13.0)])
def test_a_constant_speed_per_request_is_m_m_c(servers: int, rate: float) -> None:
    replica = router.Replica(router.Speed([(servers, float(servers))]), servers, 1, 0.0)
    outcome = router.simulate(poisson(rate, 100_000), [replica], router.least_loaded())
    # Over 100,000 correlated waits the mean is known to about 4%.
    assert statistics.fmean(outcome.waits) == pytest.approx(erlang_c_wait(rate, servers), rel=0.1)


def test_a_constant_total_speed_is_processor_sharing() -> None:
    many = 10_000
    replica = router.Replica(router.Speed([(1, 1.0), (many, 1.0)]), many, 1, 0.0)
    outcome = router.simulate(poisson(0.6, 100_000), [replica], router.least_loaded())
    assert max(outcome.waits) == 0.0
    # M/M/1-PS: 1 / (service rate - arrival rate).
    assert statistics.fmean(outcome.times) == pytest.approx(1 / (1 - 0.6), rel=0.05)


def test_random_routing_splits_into_independent_queues() -> None:
    replicas = [router.Replica(router.Speed([(1, 1.0)]), 1, 1, 0.0) for _ in range(4)]
    outcome = router.simulate(poisson(4 * 0.7, 100_000), replicas, router.at_random(3))
    assert statistics.fmean(outcome.waits) == pytest.approx(erlang_c_wait(0.7, 1), rel=0.1)


def test_every_request_ends_however_few_slots_there_are() -> None:
    replicas = [router.Replica(router.Speed([(8, 8.0)]), 8, 2, 0.01) for _ in range(3)]
    requests = poisson(9.0, 5_000, adapters=50)
    outcome = router.simulate(requests, replicas, router.at_random(1))
    assert all(time > 0 for time in outcome.times)
    assert all(not replica.outstanding and not replica.running and not replica.waiting for replica in replicas)
    assert all(len(replica.held) <= 2 and not any(replica.held.values()) for replica in replicas)


def test_affinity_loads_less_and_keeps_its_bound() -> None:
    requests = poisson(20.0, 20_000, adapters=20)

    def run(policy: Any) -> tuple[Any, int]:
        replicas = [router.Replica(router.Speed([(8, 8.0)]), 8, 8, 0.001) for _ in range(5)]
        worst = 0

        def watched(adapter: int, seen: Any) -> int:
            nonlocal worst
            chosen: int = policy(adapter, seen)
            mean = (sum(replica.outstanding for replica in seen) + 1) / len(seen)
            worst = max(worst, seen[chosen].outstanding + 1 - math.ceil(1.25 * mean))
            return chosen

        return router.simulate(requests, replicas, watched), worst

    affine, over = run(router.affine(1.25))
    assert over <= 0
    assert affine.loads < 0.5 * run(router.at_random(1))[0].loads
