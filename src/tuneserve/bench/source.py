"""Load on the native engine in this process."""

import time
from collections.abc import Sequence

from tuneserve.bench._measure import Workload
from tuneserve.bench._result import Timed
from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.native import EngineConfig, NativeCore
from tuneserve.sources import ResolvedSource


class SourceTarget:
    """A source, loaded for one workload; prompts take nothing from one another's cache.

    ``dtype`` and ``weights`` are those of :class:`~tuneserve.native.EngineConfig`.
    """

    def __init__(
        self, source: ResolvedSource, workload: Workload, *, dtype: str = "auto", weights: str = "auto"
    ) -> None:
        """Load it.

        Raises:
            InputError: the workload is out of range, or the source cannot be loaded for it.
        """
        workload.check()
        self._core = NativeCore(
            EngineConfig.of(
                source,
                dtype=dtype,
                weights=weights,
                context_length=workload.prompt_tokens + workload.new_tokens,
                max_running=max(workload.concurrency),
                prefix_cache=False,
            )
        )
        info = self._core.info
        self.name = source.name
        self.vocab_size = info.vocab_size
        self.about = {"engine": "native", "dtype": info.dtype, "weights": weights, "device": info.device}

    def run(self, prompts: Sequence[list[int]], new_tokens: int, concurrency: int) -> list[Timed]:
        """Continue the prompts; see :class:`~tuneserve.bench.Target`."""
        core, params = self._core, SamplingParams(max_tokens=new_tokens, temperature=0)
        sent: dict[str, float] = {}
        pieces: dict[str, list[float]] = {str(index): [] for index in range(len(prompts))}
        errors: dict[str, str] = {}
        pending = iter(enumerate(prompts))

        def send() -> None:
            index, prompt = next(pending, (None, None))
            if prompt is not None:
                name = str(index)
                sent[name] = time.perf_counter()
                core.add(GenerationRequest(id=name, prompt_ids=prompt, params=params))

        for _ in range(concurrency):
            send()
        while not core.idle:
            outputs = core.step()
            now = time.perf_counter()
            for output in outputs:
                if output.failed is not None:
                    errors[output.id] = output.failed
                else:
                    pieces[output.id].append(now)
                if output.failed is not None or output.finish_reason is not None:
                    send()
        return [Timed(sent[name], tuple(times), len(times), errors.get(name)) for name, times in pieces.items()]
