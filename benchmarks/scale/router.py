"""A discrete-event model of a router before many replicas that serve adapters over one base.

A replica runs up to ``sequences`` requests together. All of them advance at the same speed, which falls as more run, as
measured (`Speed`). So a replica keeps one clock, the tokens that each running request has gained since the beginning:
a request is done when that clock reaches where it was at its start plus its own length. With a constant total speed
this is the queue M/M/1 with processor sharing, with a constant speed per request M/M/c; both are tested.

A replica has a few slots for adapters. A request starts at once if its adapter is in one; else the least recently used
slot that no running request needs is loaded first, and if there is none the request waits while others pass it. Who
wants an adapter that is being loaded for another starts at once: loading takes far less time than a request.
"""

import heapq
import random
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import NamedTuple

_ARRIVAL, _LOADED, _DONE = range(3)


class Request(NamedTuple):
    """One request: when it arrives in seconds, which adapter it wants, how many tokens it generates."""

    time: float
    adapter: int
    tokens: float


class Speed:
    """Tokens per second of a replica by the number of running requests, straight lines between measured points."""

    def __init__(self, points: Sequence[tuple[int, float]]) -> None:
        self._counts, self._totals = [0, *(count for count, _ in points)], [0.0, *(total for _, total in points)]

    def each(self, running: int) -> float:
        """Return the tokens per second that each of ``running`` requests gains."""
        right = min(bisect_left(self._counts, running), len(self._counts) - 1)
        before, after = self._counts[right - 1], self._counts[right]
        share = (running - before) / (after - before)
        return (self._totals[right - 1] * (1 - share) + self._totals[right] * share) / running


@dataclass
class Replica:
    """One server: requests that run, requests that wait, and the adapters that it holds."""

    speed: Speed
    sequences: int
    slots: int
    load_seconds: float
    outstanding: int = 0
    loads: int = 0
    version: int = 0
    clock: float = 0.0
    seen: float = 0.0
    busy: float = 0.0
    starting: int = 0
    running: list[tuple[float, int, Request]] = field(default_factory=list)
    waiting: dict[int, deque[tuple[int, Request]]] = field(default_factory=dict)
    # Who is first in each of these queues; those that have started since are left until they come up.
    heads: list[tuple[int, int]] = field(default_factory=list)
    # The adapters in the slots, the least recently used first, with how many requests need each.
    held: OrderedDict[int, int] = field(default_factory=OrderedDict)

    def advance(self, now: float) -> None:
        """Let time pass until ``now``."""
        if self.running:
            self.clock += self.speed.each(len(self.running)) * (now - self.seen)
            self.busy += now - self.seen
        self.seen = now

    def next_done(self) -> float | None:
        """Return when the next running request is done, if nothing starts before."""
        if not self.running:
            return None
        return self.seen + max(0.0, self.running[0][0] - self.clock) / self.speed.each(len(self.running))

    def wait(self, number: int, request: Request) -> None:
        """Put a request behind those that wait for the same adapter."""
        if request.adapter not in self.waiting:
            self.waiting[request.adapter] = deque()
            heapq.heappush(self.heads, (number, request.adapter))
        self.waiting[request.adapter].append((number, request))

    def admit(self) -> Iterator[tuple[int, Request, bool]]:
        """Yield each waiting request that can start, the oldest first, and whether its adapter has to be loaded."""
        while self.waiting and len(self.running) + self.starting < self.sequences:
            if len(self.held) < self.slots or not all(self.held.values()):
                adapter = self._oldest()
            elif able := [adapter for adapter in self.held if adapter in self.waiting]:
                adapter = min(able, key=lambda each: self.waiting[each][0][0])
            else:
                return
            number, request = self.waiting[adapter].popleft()
            if self.waiting[adapter]:
                heapq.heappush(self.heads, (self.waiting[adapter][0][0], adapter))
            else:
                del self.waiting[adapter]
            yield number, request, self._take(adapter)

    def _oldest(self) -> int:
        """Return the adapter that the oldest waiting request wants."""
        while True:
            number, adapter = self.heads[0]
            if adapter in self.waiting and self.waiting[adapter][0][0] == number:
                return adapter
            heapq.heappop(self.heads)

    def _take(self, adapter: int) -> bool:
        missing = adapter not in self.held
        if missing:
            if len(self.held) == self.slots:
                del self.held[next(each for each, needed in self.held.items() if not needed)]
            self.held[adapter] = 0
            self.loads += 1
        self.held[adapter] += 1
        self.held.move_to_end(adapter)
        return missing


Policy = Callable[[int, Sequence[Replica]], int]


def at_random(seed: int) -> Policy:
    """Choose any replica."""
    draw = random.Random(seed)
    return lambda _, replicas: draw.randrange(len(replicas))


def least_loaded() -> Policy:
    """Choose the replica with the fewest requests, the first of equals."""
    return lambda _, replicas: min(range(len(replicas)), key=lambda index: replicas[index].outstanding)


def affine(bound: float) -> Policy:
    """Choose the first replica in the adapter's own order that has at most ``bound`` times the mean load.

    The order is by highest random weight (Thaler and Ravishankar 1998), the bound that of Mirrokni, Thorup and
    Zadimoghaddam (arXiv:1608.01350).
    """
    orders: dict[int, list[int]] = {}

    def choose(adapter: int, replicas: Sequence[Replica]) -> int:
        if adapter not in orders:
            weights = random.Random(adapter)
            drawn = [weights.random() for _ in replicas]
            orders[adapter] = sorted(range(len(replicas)), key=drawn.__getitem__)
        total = sum(replica.outstanding for replica in replicas) + 1
        most = ceil(bound * total / len(replicas))
        return next(index for index in orders[adapter] if replicas[index].outstanding < most)

    return choose


@dataclass(frozen=True)
class Outcome:
    """Per request in order of arrival: seconds until it started, and until it was done. ``loads`` counts adapters."""

    waits: list[float]
    times: list[float]
    loads: int
    busy: float
    """Mean share of the time in which a replica had something to do."""


def simulate(requests: Sequence[Request], replicas: Sequence[Replica], policy: Policy) -> Outcome:
    """Run all requests to their end."""
    waits, times = [0.0] * len(requests), [0.0] * len(requests)
    # Time, kind, request or version, replica; arrivals are fed in one at a time.
    events: list[tuple[float, int, int, int]] = []
    heapq.heappush(events, (requests[0].time, _ARRIVAL, 0, 0))
    while events:
        now, kind, number, index = heapq.heappop(events)
        if kind == _ARRIVAL:
            index = policy(requests[number].adapter, replicas)
            replica = replicas[index]
            replica.outstanding += 1
            replica.wait(number, requests[number])
            if number + 1 < len(requests):
                heapq.heappush(events, (requests[number + 1].time, _ARRIVAL, number + 1, 0))
        replica = replicas[index]
        if kind == _DONE and number != replica.version:
            continue
        replica.advance(now)
        if kind == _DONE:
            _, done, request = heapq.heappop(replica.running)
            times[done] = now - request.time
            replica.outstanding -= 1
            replica.held[request.adapter] -= 1
        elif kind == _LOADED:
            replica.starting -= 1
            _start(replica, number, requests[number], now, waits)
        for waiting, request, missing in replica.admit():
            if missing and replica.load_seconds:
                replica.starting += 1
                heapq.heappush(events, (now + replica.load_seconds, _LOADED, waiting, index))
            else:
                _start(replica, waiting, request, now, waits)
        replica.version += 1
        if (done_at := replica.next_done()) is not None:
            heapq.heappush(events, (done_at, _DONE, replica.version, index))
    span = max(replica.seen for replica in replicas)
    busy = sum(replica.busy for replica in replicas) / len(replicas) / span
    return Outcome(waits, times, sum(replica.loads for replica in replicas), busy)


def _start(replica: Replica, number: int, request: Request, now: float, waits: list[float]) -> None:
    waits[number] = now - request.time
    heapq.heappush(replica.running, (replica.clock + request.tokens, number, request))
