"""The native engine: schedule, run, postprocess."""

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

import msgspec

from tuneserve._version import __version__
from tuneserve.engines.contract import EngineInfo, EngineStats, FinishReason, GenerationRequest, TokenLogprob
from tuneserve.engines.requests import check_request
from tuneserve.errors import InputError, RequestError
from tuneserve.native._adapters import Adapters
from tuneserve.native._blocks import BlockPool
from tuneserve.native._choose import Choice
from tuneserve.native._draft import Drafter
from tuneserve.native._flight import Flight
from tuneserve.native._grammar import Grammars, GrammarState
from tuneserve.native._lead import LeadingRunner, lead
from tuneserve.native._load import MOST_SPECULATION, EngineConfig, give_memory_back, load_decoder, reuses_prefixes
from tuneserve.native._pooling import Pool, Pooling
from tuneserve.native._runner import Runner
from tuneserve.native._scheduler import Scheduler, Segment, Step
from tuneserve.native._sequence import Sequence
from tuneserve.native._sizes import cache_blocks, running_limit
from tuneserve.native._transformers import TransformersDecoder
from tuneserve.native._transformers_runner import TransformersRunner

# Long enough to use the processor well, short enough that decoding sequences are not kept waiting by a prompt.
_STEP_TOKENS = 512
# A GPU reads the weights for a few rows about as fast as for one, and computes thousands in the same time as hundreds.
_GPU_STEP_TOKENS = 8192
# So many tokens a sequence gets at once where the host need not choose them, while as many more are being computed; a
# new request waits for both.
_STEPS_AHEAD = 4
_COMPILING_SECONDS = 0.01


class Output(msgspec.Struct, frozen=True, gc=False):
    """A new token of a request, with the log-probabilities that it asked for; what it asked of the prompt comes first.

    ``cached_tokens`` of the prompt were found in the cache, which the first one says.
    ``failed`` says why it cannot go on, ``refused`` why its grammar cannot be used.
    """

    id: str
    token: int | None
    finish_reason: FinishReason | None = None
    failed: str | None = None
    refused: str | None = None
    logprob: TokenLogprob | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    cached_tokens: int | None = None
    pooled: list[float] | None = None


class NativeCore:
    """Continues any number of sequences, one batched step at a time, on one thread.

    Raises:
        InputError: the model cannot be loaded as it is, or its cache does not fit in memory.
    """

    def __init__(self, config: EngineConfig) -> None:
        if not 0 <= config.speculation <= MOST_SPECULATION:
            raise InputError(f"speculation is {config.speculation}; choose from 0 (off) to {MOST_SPECULATION}.")
        decoder, ranks = (load_decoder(config), None) if config.tensor_parallel == 1 else lead(config)
        give_memory_back()
        blocks = cache_blocks(config, decoder, None if ranks is None else ranks.free)
        max_running = running_limit(config, decoder, blocks)
        self._runner: Runner | TransformersRunner
        step_tokens = _GPU_STEP_TOKENS if decoder.device.type == "cuda" else _STEP_TOKENS
        if isinstance(decoder, TransformersDecoder):
            # Its caches cannot be shared, nor prompts be cut.
            self._runner, step_tokens, reuse = TransformersRunner(decoder), max_running * decoder.context_length, False
        else:
            reuse = reuses_prefixes(config, decoder.spec)
            if ranks is None:
                self._runner = Runner(decoder, blocks, max_running)
            else:
                self._runner = LeadingRunner(decoder, blocks, max_running, ranks)
        self._pool = BlockPool(blocks, reuse=reuse)
        self._adapters = Adapters(config, decoder)
        self._scheduler = Scheduler(self._pool, max_running, max(step_tokens, max_running))
        self._speculation = config.speculation
        self._sequences: dict[str, Sequence] = {}
        self._compiling: dict[Sequence, Future[GrammarState]] = {}
        self._flight: Flight | None = None
        tokenizer_dir = None if config.tokenizer_dir is None else Path(config.tokenizer_dir)
        self._grammars = Grammars(tokenizer_dir, Path(config.model_dir), self._runner.vocab_size)
        self.info = EngineInfo(
            engine="native",
            version=__version__,
            context_length=decoder.context_length,
            vocab_size=self._runner.vocab_size,
            dtype=str(decoder.dtype).removeprefix("torch."),
            device=str(decoder.device),
            weight_bytes=decoder.weight_bytes + (0 if ranks is None else ranks.weight_bytes),
            max_running=max_running,
            resumes=True,
            prioritises=True,
        )

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._sequences

    def stats(self) -> EngineStats:
        """Return the load right now."""
        scheduler, usable = self._scheduler, self._pool.blocks - 1
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            cache_usage=1 - self._pool.available / usable,
            prefix_queries=scheduler.looked_up,
            prefix_hits=scheduler.found,
        )

    def add(self, request: GenerationRequest, pool: Pool | None = None) -> None:
        """Queue a request; with ``pool``, its first output has the prompt's hidden states after the last norm, pooled.

        Raises:
            RequestError: it can never be served.
        """
        self._check(request)
        sequence = Sequence(request)
        if request.adapter is not None:
            sequence.slot = self._adapters.slots[request.adapter]
        if pool is not None:
            assert request.params.prompt_logprobs is None
            sequence.pooling = Pooling(pool)
        if self._speculation:
            limit = len(request.prompt_ids) - request.resumed + (request.params.max_tokens or self.info.context_length)
            sequence.drafter = Drafter(sequence.tokens, self._speculation, min(limit, self.info.context_length))
        self._sequences[request.id] = sequence
        if request.params.grammar is None:
            self._scheduler.add(sequence)
        else:
            past = request.prompt_ids[len(request.prompt_ids) - request.resumed :]
            self._compiling[sequence] = self._grammars.start(request.params.grammar, past)

    def load_adapter(self, name: str, path: Path) -> None:
        """Serve the adapter in a directory, unmerged, to requests that give ``name``.

        Raises:
            InputError: the name is taken, or the adapter cannot run unmerged on this base.
        """
        self.put_adapter(name, self.read_adapter(path))

    def read_adapter(self, path: Path) -> Any:
        """Read an adapter for :meth:`put_adapter`, on any thread, also while a step runs.

        Raises:
            InputError: it cannot run unmerged on this base.
        """
        return self._adapters.read(path)

    def put_adapter(self, name: str, adapter: Any) -> None:
        """Serve an adapter that was read.

        Raises:
            InputError: the name is taken.
        """
        self._adapters.put(name, adapter)
        self._note_adapters()

    def unload_adapter(self, name: str) -> None:
        """Take no more requests for an adapter; it goes when its last sequence has ended.

        Raises:
            InputError: there is none of that name.
        """
        self._adapters.leave(name)
        self._note_adapters()
        self._drop_adapters()

    def is_unloading(self, name: str) -> bool:
        """Whether an adapter was asked to go and still has sequences."""
        return name in self._adapters.leaving

    def cancel(self, request_id: str) -> None:
        """Forget a request; one that is finished or unknown is left alone."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None and self._compiling.pop(sequence, None) is None:
            self._scheduler.remove(sequence)
        self._drop_adapters()

    def step(self) -> list[Output]:
        """Run one batch and return what it produced."""
        if self._flight is not None:
            return self._land(self._flight)
        refused = self._take_compiled()
        step = self._scheduler.schedule()
        if step is None:
            # Whoever calls has to look for other requests now and then.
            wait(self._compiling.values(), _COMPILING_SECONDS, FIRST_COMPLETED)
            return refused
        if isinstance(self._runner, Runner) and self._runner.runs_ahead(step):
            steps = self._reserve([segment.sequence for segment in step.segments], 0)
            if steps > 1:
                return refused + self._land(self._runner.launch(step, steps, self._scheduler.changes))
        return refused + self._complete(step, self._runner.run(step))

    def _reserve(self, sequences: Collection[Sequence], after: int) -> int:
        left = min(sequence.left(self.info.context_length) for sequence in sequences) - after
        return self._scheduler.reserve(sequences, after, min(_STEPS_AHEAD, left)) if left > 0 else 0

    def _land(self, flight: Flight) -> list[Output]:
        """Return what a flight has produced, having launched the next where nothing speaks against it."""
        self._flight = None
        assert isinstance(self._runner, Runner)
        compiled = any(future.done() for future in self._compiling.values())
        if self._scheduler.changes == flight.changes and not compiled:
            steps = self._reserve(flight.sequences, flight.steps)
            self._flight = self._runner.follow(flight, steps) if 0 < steps <= flight.room else None
        segments = []
        results: dict[Sequence, list[Choice] | str] = {}
        for sequence, choices in zip(flight.sequences, flight.choices(), strict=True):
            # It may have ended, or been cancelled, after this was launched.
            if self._sequences.get(sequence.request.id) is sequence:
                sequence.draft = [] if isinstance(choices, str) else [choice.token for choice in choices[:-1]]
                segments.append(Segment(sequence, sequence.computed, flight.steps))
                results[sequence] = choices
        return self._complete(Step(tuple(segments), 0), results)

    def _complete(self, step: Step, results: Mapping[Sequence, list[Choice] | str]) -> list[Output]:
        self._scheduler.complete(step, [sequence for sequence, choice in results.items() if isinstance(choice, str)])
        return [output for sequence, choices in results.items() for output in self._postprocess(sequence, choices)]

    def _take_compiled(self) -> list[Output]:
        """Queue the requests whose grammars are ready; return those whose grammars cannot be used."""
        refused = []
        for sequence, future in [item for item in self._compiling.items() if item[1].done()]:
            del self._compiling[sequence]
            try:
                sequence.grammar = future.result()
            except RequestError as error:
                self.cancel(sequence.request.id)
                refused.append(Output(sequence.request.id, None, refused=str(error)))
            else:
                self._scheduler.add(sequence)
        return refused

    def _postprocess(self, sequence: Sequence, choices: list[Choice] | str) -> Iterator[Output]:
        request_id = sequence.request.id
        if isinstance(choices, str):
            self.cancel(request_id)
            yield Output(request_id, None, failed=choices)
            return
        sequence.draft.clear()
        for choice in choices:
            prompt_logprobs = sequence.first_logprobs()
            cached_tokens = None if sequence.generated else sequence.found
            sequence.append(choice.token)
            reason = sequence.finish_reason(self.info.context_length)
            yield Output(
                request_id,
                choice.token,
                reason,
                logprob=choice.logprob,
                prompt_logprobs=prompt_logprobs,
                cached_tokens=cached_tokens,
                pooled=None if sequence.pooling is None else sequence.pooling.state(),
            )
            if reason is not None:
                self.cancel(request_id)
                return

    def _note_adapters(self) -> None:
        self.info = msgspec.structs.replace(self.info, adapters=tuple(self._adapters.slots))

    def _drop_adapters(self) -> None:
        """Drop the adapters that were asked to go and that no sequence uses, and what the cache has of them."""
        if self._adapters.leaving:
            for name in self._adapters.drop({sequence.slot for sequence in self._sequences.values()}):
                self._pool.forget(name)

    def _check(self, request: GenerationRequest) -> None:
        if request.id in self._sequences:
            raise RequestError(f"a request with the id {request.id!r} is running already; use another id.")
        check_request(request, self.info)
        count = len(request.prompt_ids)
        if not 0 <= request.resumed < count:
            raise RequestError(
                f"{request.resumed} of {count} tokens cannot be resumed ones; leave one for the prompt.", "resumed"
            )
        if request.resumed and request.params.prompt_logprobs is not None:
            raise RequestError(
                "prompt_logprobs come with the first token; leave them out to resume.", "prompt_logprobs"
            )
