"""Load on the native engine in this process."""

import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

from tuneserve.bench._load import Load
from tuneserve.bench._result import Timed
from tuneserve.bench._workload import Workload
from tuneserve.engines.contract import EngineStats, GenerationRequest, SamplingParams
from tuneserve.errors import InputError
from tuneserve.hardware import detect_machine
from tuneserve.native import EngineConfig, NativeCore
from tuneserve.planner import Roofline, roofline
from tuneserve.sources import ResolvedSource


class SourceTarget:
    """A source, loaded for one workload.

    ``adapters`` (directories by name) share the requests, unmerged. Prompts take nothing from one another's cache but
    the prefix that they are to share. ``dtype`` and ``weights`` are those of :class:`~tuneserve.native.EngineConfig`.
    """

    def __init__(
        self,
        source: ResolvedSource,
        workload: Workload,
        *,
        adapters: Mapping[str, Path] | None = None,
        dtype: str = "auto",
        weights: str = "auto",
    ) -> None:
        """Load it.

        Raises:
            InputError: the workload is out of range, or the source or an adapter cannot be loaded for it.
        """
        workload.check()
        self._source = source
        self._core = NativeCore(
            EngineConfig.of(
                source,
                dtype=dtype,
                weights=weights,
                context_length=workload.prompt_tokens + workload.new_tokens,
                max_running=None if workload.rates else max(workload.concurrency),
                prefix_cache=workload.shared_prefix > 0,
            )
        )
        self.models = tuple(adapters or ())
        for name, path in (adapters or {}).items():
            self._core.put_adapter(name, self._core.read_adapter(path))
        info = self._core.info
        self.name = source.name
        self.vocab_size = info.vocab_size
        self.about = {"engine": "native", "dtype": info.dtype, "weights": weights, "device": info.device}
        if self.models:
            self.about["adapters"] = ", ".join(self.models)

    def run(self, load: Load, done: Callable[[], None]) -> list[Timed]:
        """Continue the prompts; see :class:`~tuneserve.bench.Target`."""
        core, params = self._core, SamplingParams(max_tokens=load.new_tokens, temperature=0)
        sent: list[float] = []
        pieces: list[list[float]] = [[] for _ in load.prompts]
        errors: dict[int, str] = {}
        started = time.perf_counter()

        def send(now: float) -> None:
            prompt = load.prompts[len(sent)]
            request = GenerationRequest(id=str(len(sent)), prompt_ids=prompt.ids, params=params, adapter=prompt.model)
            sent.append(now)
            core.add(request)

        ended = 0
        while ended < len(load.prompts):
            if load.arrivals is None:
                while len(sent) < min(ended + load.concurrency, len(load.prompts)):
                    send(time.perf_counter())
            else:
                if core.idle:
                    time.sleep(max(0.0, started + load.arrivals[len(sent)] - time.perf_counter()))
                # From when it should have been sent on, also where the step before took longer.
                while len(sent) < len(load.prompts) and started + load.arrivals[len(sent)] <= time.perf_counter():
                    send(started + load.arrivals[len(sent)])
            outputs = core.step()
            now = time.perf_counter()
            for output in outputs:
                index = int(output.id)
                if output.failed is not None:
                    errors[index] = output.failed
                else:
                    pieces[index].append(now)
                if output.failed is not None or output.finish_reason is not None:
                    ended += 1
                    done()
        return [
            Timed(start, tuple(times), len(times), errors.get(index))
            for index, (start, times) in enumerate(zip(sent, pieces, strict=True))
        ]

    def stats(self) -> EngineStats:
        """Return the engine's load right now, and what its prefix cache found so far."""
        return self._core.stats()

    def bandwidth_limit(self, sequences: int, tokens: int) -> float | None:
        """Return the tokens per second that memory bandwidth allows so many sequences of so many tokens."""
        return None if self._roofline is None else self._roofline.tokens_per_second(sequences, tokens)

    @cached_property
    def _roofline(self) -> Roofline | None:
        try:
            return roofline(self._source, self._core.info.weight_bytes, detect_machine())
        except InputError:
            # The engine runs more than the planner can size.
            return None
