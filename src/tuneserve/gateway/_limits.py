"""How much each API key may do: token buckets over a monotonic clock."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from tuneserve.gateway._errors import ApiError
from tuneserve.gateway._keys import Key, Limits

_MINUTE = 60.0
Clock = Callable[[], float]


class Bucket:
    """Holds up to ``per_minute`` of something, and fills at that rate; it may be overdrawn, and then is empty longer.

    See "token bucket" in RFC 2697, section 3, where the burst is one minute's worth.
    """

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self.size = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._moment = clock()

    @property
    def level(self) -> float:
        """How much is in it now; below zero when overdrawn."""
        now = self._clock()
        self._level = min(self.size, self._level + (now - self._moment) * self.size / _MINUTE)
        self._moment = now
        return self._level

    def take(self, amount: int) -> None:
        """Take so much, whatever is in it."""
        self._level = self.level - amount

    def seconds_until(self, level: float) -> float:
        """Return after how many seconds it holds so much, if nothing is taken."""
        return max(0.0, (level - self.level) * _MINUTE / self.size)


@dataclass
class Use:
    """What one key has done lately."""

    limits: Limits
    requests: Bucket | None
    tokens: Bucket | None
    running: int = 0


class Allowance:
    """One admitted request's share of its key's limits."""

    def __init__(self, use: Use) -> None:
        self._use = use

    def spend(self, tokens: int) -> None:
        """Take tokens from what the key may have this minute."""
        if self._use.tokens is not None:
            self._use.tokens.take(tokens)

    def headers(self) -> dict[str, str]:
        """Return what OpenAI calls these numbers, as they are now."""
        return _headers(self._use)

    def finish(self) -> None:
        """Note that the request is over."""
        self._use.running -= 1


class RateLimits:
    """The use of each key that has limits; a key whose limits were changed starts anew, one that is gone is forgotten.

    How many tokens a request will take is not known when it is admitted. So it is admitted as long as the key has any
    left, and pays as they come: over time no key gets more than its limit, and at once no more than one context per
    running sequence.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._uses: dict[str, Use] = {}

    def admit(self, key: Key) -> Allowance:
        """Count one request of ``key``.

        Raises:
            ApiError: 429, it has to wait.
        """
        use = self._use(key)
        if use.limits.concurrent is not None and use.running >= use.limits.concurrent:
            raise _refusal(use, f"{use.limits.concurrent} requests at once", "concurrency_limit_exceeded", 1)
        if use.requests is not None and (wait := use.requests.seconds_until(1)) > 0:
            raise _refusal(use, f"{use.requests.size} requests per minute", "rate_limit_exceeded", wait)
        if use.tokens is not None and (wait := use.tokens.seconds_until(1)) > 0:
            raise _refusal(use, f"{use.tokens.size} tokens per minute", "rate_limit_exceeded", wait)
        if use.requests is not None:
            use.requests.take(1)
        use.running += 1
        return Allowance(use)

    def __len__(self) -> int:
        return len(self._uses)

    def keep_only(self, names: frozenset[str]) -> None:
        """Forget every key that is not one of ``names``."""
        self._uses = {name: use for name, use in self._uses.items() if name in names}

    def _use(self, key: Key) -> Use:
        use = self._uses.get(key.name)
        if use is None or use.limits != key.limits:
            requests, tokens = (
                None if limit is None else Bucket(limit, self._clock)
                for limit in (key.limits.requests_per_minute, key.limits.tokens_per_minute)
            )
            use = self._uses[key.name] = Use(key.limits, requests, tokens)
        return use


def _refusal(use: Use, limit: str, code: str, wait: float) -> ApiError:
    seconds = max(1, math.ceil(wait))
    message = f"This key may have {limit}; send the request again in {seconds} s."
    return ApiError(429, message, code=code, headers={"Retry-After": str(seconds), **_headers(use)})


def _headers(use: Use) -> dict[str, str]:
    headers = {}
    for name, bucket in (("requests", use.requests), ("tokens", use.tokens)):
        if bucket is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(bucket.size)
            headers[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(bucket.level)))
            headers[f"x-ratelimit-reset-{name}"] = _duration(bucket.seconds_until(bucket.size))
    return headers


def _duration(seconds: float) -> str:
    """Return ``6m0s``, ``1.5s`` or ``12ms``, as OpenAI writes durations."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes:.0f}m{rest:.0f}s" if minutes else f"{rest:.3g}s"
