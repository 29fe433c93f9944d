"""What an operator watches, for Prometheus; where vLLM has a metric of the same meaning, under its name."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tuneserve.engines.contract import EngineStats, FinishReason
from tuneserve.gateway._log import dropped_lines
from tuneserve.gateway._record import Record, current

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)
# A method is what the client says, and every label is kept forever.
_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})


class Metrics:
    """The counters of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._engine = _EngineMetrics()
        registry.register(self._engine)
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "http_requests", "Requests answered; status 499 is a client that left first.",
            ["method", "handler", "status"], registry=registry,
        )  # fmt: skip
        self._request_seconds = Histogram(
            "http_request_duration_seconds", "From request to the end of its answer.", ["handler"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._refused = Counter(
            "tuneserve_requests_refused", "Requests that a limit turned away.", ["reason"], registry=registry
        )
        self._sequences = _SequenceMetrics(registry)
        self._of_models: dict[str, _OfModel] = {}

    def answered(self, method: str, endpoint: str, status: int, seconds: float) -> None:
        """Count one request; status 499 is a client that left first."""
        self._requests.labels(method if method in _METHODS else "other", endpoint, str(status)).inc()
        self._request_seconds.labels(endpoint).observe(seconds)

    def refused(self, reason: str) -> None:
        """Count one request that a limit turned away."""
        self._refused.labels(reason).inc()

    def sequence(self, prompt_tokens: int, arrived: float) -> "SequenceTimer":
        """Count one sequence of the current request, which arrived at that :func:`time.monotonic`."""
        record = current.get()
        if record is not None:
            record.prompted(prompt_tokens)
        model = "" if record is None or record.model is None else record.model
        if model not in self._of_models:
            self._of_models[model] = self._sequences.of(model)
        self._of_models[model].prompt(prompt_tokens)
        return SequenceTimer(self._of_models[model], record, arrived)

    def render(self, loads: Mapping[str, EngineStats | None], ready: Mapping[str, bool]) -> bytes:
        """Return all of it in Prometheus' text format.

        Both are by the name of an engine's model; a load is None when the engine does not say.
        """
        self._engine.loads, self._engine.ready = loads, ready
        return generate_latest(self._registry)


class _EngineMetrics(Collector):
    """What the engines said last, and the log lines that were lost."""

    def __init__(self) -> None:
        self.loads: Mapping[str, EngineStats | None] = {}
        self.ready: Mapping[str, bool] = {}

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily("tuneserve_log_lines_dropped", "Lines that the log had no room for.", dropped_lines())
        ready = GaugeMetricFamily("tuneserve_engine_ready", "1 while the engine takes requests.", labels=["model_name"])
        for model, is_ready in self.ready.items():
            ready.add_metric([model], float(is_ready))
        yield ready
        for metric, value_of in _loads():
            for model, load in self.loads.items():
                if load is not None:
                    metric.add_metric([model], value_of(load))
            yield metric


def _loads() -> Iterable[tuple[GaugeMetricFamily | CounterMetricFamily, Callable[[EngineStats], float]]]:
    def gauge(name: str, text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"vllm:{name}", text, labels=["model_name"])

    def counter(name: str, text: str) -> CounterMetricFamily:
        return CounterMetricFamily(f"vllm:{name}", f"Tokens {text} since the engine started.", labels=["model_name"])

    def lost(name: str, text: str) -> CounterMetricFamily:
        text = f"Sequences that {text}, because their replica was lost."
        return CounterMetricFamily(f"tuneserve_sequences_{name}", text, labels=["model_name"])

    yield gauge("num_requests_running", "Sequences that the engine works on."), lambda load: load.running
    yield gauge("num_requests_waiting", "Sequences that wait for room."), lambda load: load.waiting
    yield gauge("kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1."), lambda load: load.cache_usage
    yield counter("prefix_cache_queries", "looked up in the prefix cache"), lambda load: load.prefix_queries
    yield counter("prefix_cache_hits", "found in the prefix cache"), lambda load: load.prefix_hits
    yield lost("retried", "were begun again on another replica"), lambda load: load.retried
    yield lost("resumed", "went on on another replica"), lambda load: load.resumed
    yield lost("broken_off", "ended with an error"), lambda load: load.broken_off


class _SequenceMetrics:
    """What is counted of sequences, by model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"vllm:{name}", text, ["model_name", *labels], registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"vllm:{name}", text, ["model_name"], buckets=buckets, registry=registry)

        self.prompt_tokens = counter("prompt_tokens", "Tokens in prompts.")
        self.generation_tokens = counter("generation_tokens", "Tokens generated.")
        self.success = counter("request_success", "Sequences that came to their end.", "finished_reason")
        self.prompt = histogram("request_prompt_tokens", "Tokens in the prompt of a sequence.", _TOKENS)
        self.generation = histogram("request_generation_tokens", "Tokens generated for a sequence.", _TOKENS)
        self.first = histogram("time_to_first_token_seconds", "From request to the first token.", _SECONDS)
        self.between = histogram(
            "inter_token_latency_seconds", "Between the tokens of a sequence, as they came.", _TOKEN_SECONDS
        )
        self.per_token = histogram(
            "request_time_per_output_token_seconds", "Mean time between the tokens of a sequence.", _TOKEN_SECONDS
        )
        self.whole = histogram("e2e_request_latency_seconds", "From request to the last token.", _SECONDS)

    def of(self, model: str) -> "_OfModel":
        """Return the children of one model, looked up once instead of at every token."""
        return _OfModel(
            prompt_tokens=self.prompt_tokens.labels(model),
            generation_tokens=self.generation_tokens.labels(model),
            success=lambda reason: self.success.labels(model, reason),
            prompt_length=self.prompt.labels(model),
            generation=self.generation.labels(model),
            first=self.first.labels(model),
            between=self.between.labels(model),
            per_token=self.per_token.labels(model),
            whole=self.whole.labels(model),
        )


@dataclass(frozen=True, kw_only=True)
class _OfModel:
    prompt_tokens: Counter
    generation_tokens: Counter
    success: Callable[[FinishReason], Counter]
    prompt_length: Histogram
    generation: Histogram
    first: Histogram
    between: Histogram
    per_token: Histogram
    whole: Histogram

    def prompt(self, tokens: int) -> None:
        self.prompt_tokens.inc(tokens)
        self.prompt_length.observe(tokens)


@dataclass
class SequenceTimer:
    """Times the tokens of one sequence of a request."""

    metrics: _OfModel
    record: Record | None
    arrived: float
    _first: float = field(default=0.0, init=False)
    _last: float = field(default=0.0, init=False)
    _tokens: int = field(default=0, init=False)

    def add(self, tokens: int) -> None:
        """Note that ``tokens`` more have come."""
        if not tokens:
            return
        now = time.monotonic()
        if self._tokens:
            self.metrics.between.observe((now - self._last) / tokens)
        else:
            self._first = now
            self.metrics.first.observe(now - self.arrived)
        self._last = now
        self._tokens += tokens
        self.metrics.generation_tokens.inc(tokens)
        if self.record is not None:
            self.record.generated(tokens)

    def finish(self, reason: FinishReason) -> None:
        """Note that there will be no more, and why."""
        self.metrics.success(reason).inc()
        self.metrics.generation.observe(self._tokens)
        self.metrics.whole.observe(time.monotonic() - self.arrived)
        if self._tokens > 1:
            self.metrics.per_token.observe((self._last - self._first) / (self._tokens - 1))
