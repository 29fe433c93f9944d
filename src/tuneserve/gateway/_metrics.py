"""What an operator watches, for Prometheus."""

import time
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from tuneserve.engines.contract import EngineStats

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)


class Metrics:
    """The counters of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter("tuneserve_requests", "Requests answered.", ["endpoint", "status"], registry=registry)
        self._request_seconds = Histogram(
            "tuneserve_request_seconds", "From request to the end of its answer.", ["endpoint"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._prompt_tokens = Counter("tuneserve_prompt_tokens", "Tokens in prompts.", registry=registry)
        self._generated_tokens = Counter("tuneserve_generated_tokens", "Tokens generated.", registry=registry)
        self._first_token = Histogram(
            "tuneserve_time_to_first_token_seconds", "From request to the first token.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._per_token = Histogram(
            "tuneserve_time_per_output_token_seconds", "Mean time between the tokens of one sequence.",
            buckets=_TOKEN_SECONDS, registry=registry,
        )  # fmt: skip
        self._running = Gauge("tuneserve_sequences_running", "Sequences the engine works on.", registry=registry)
        self._waiting = Gauge("tuneserve_sequences_waiting", "Sequences that wait for room.", registry=registry)
        self._cache = Gauge("tuneserve_cache_usage_ratio", "Share of the KV cache in use, 0 to 1.", registry=registry)

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count one request; status 499 is a client that left first."""
        self._requests.labels(endpoint, str(status)).inc()
        self._request_seconds.labels(endpoint).observe(seconds)

    def sequence(self, prompt_tokens: int, arrived: float) -> "SequenceTimer":
        """Count one sequence of a request that arrived at that :func:`time.monotonic`."""
        self._prompt_tokens.inc(prompt_tokens)
        return SequenceTimer(self._generated_tokens, self._first_token, self._per_token, arrived)

    def render(self, load: EngineStats | None) -> bytes:
        """Return all of it in Prometheus' text format; ``load`` is None when the engine does not say."""
        if load is not None:
            self._running.set(load.running)
            self._waiting.set(load.waiting)
            self._cache.set(load.cache_usage)
        return generate_latest(self._registry)


@dataclass
class SequenceTimer:
    """Times the tokens of one sequence."""

    generated: Counter
    first_token: Histogram
    per_token: Histogram
    arrived: float
    _first: float | None = field(default=None, init=False)
    _tokens: int = field(default=0, init=False)

    def add(self, tokens: int) -> None:
        """Note that ``tokens`` more have come."""
        if tokens and self._first is None:
            self._first = time.monotonic()
            self.first_token.observe(self._first - self.arrived)
        self._tokens += tokens
        self.generated.inc(tokens)

    def finish(self) -> None:
        """Note that there will be no more."""
        if self._first is not None and self._tokens > 1:
            self.per_token.observe((time.monotonic() - self._first) / (self._tokens - 1))
