"""Offline generation: prompts or conversations in, texts out, in this process."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.errors import RequestError, TextError
from tuneserve.native._beam import Beam, BeamRules, search
from tuneserve.native._engine import NativeCore, Output
from tuneserve.native._load import EngineConfig
from tuneserve.native._offline import MOST_SAMPLES, outputs
from tuneserve.native._pooling import POOLS, Pool
from tuneserve.native._run import Completion, Run
from tuneserve.sources import ResolvedSource, resolve
from tuneserve.text import Detokenizer, StopStrings, open_chat_template, open_tokenizer

Prompt = str | Sequence[int]
Conversation = Sequence[Mapping[str, Any]]
Adapter = str | Sequence[str | None] | None


@dataclass(frozen=True)
class Score:
    """The tokens of a text, and the log-probability of each but the first."""

    token_ids: list[int]
    logprobs: list[float]

    @property
    def perplexity(self) -> float:
        """The exponential of the mean of what each token costs."""
        return math.exp(-sum(self.logprobs) / len(self.logprobs))


class LLM:
    """A model in this process, for batches of prompts.

    Args:
        source: what to run; see :func:`tuneserve.sources.resolve`.
        base: the base to use instead of the one that an adapter names.
        dtype: auto, float32, bfloat16 or float16.
        context_length: tokens per sequence, prompt included; None takes the model's, up to 8192.
        max_running: sequences computed together; None is 64, on a GPU 256.
        cache_tokens: tokens that the cache holds; None takes what fits in memory, up to ``max_running`` full contexts.
        prefix_cache: whether a prompt uses what was computed for an equal beginning of another one.
        speculation: tokens guessed at most from what a sequence repeats; the output is the same.
        cpu_step: auto, compiled or eager.
        weights: auto keeps what is stored in few bits so, where it can; dequantised, int8 or int4 make it so at load.
        adapters: directories of LoRA adapters over the source, which stays as it is, by the names that calls give.

    Raises:
        InputError: the source cannot be run as it is, or an adapter not unmerged.
    """

    def __init__(
        self,
        source: str | Path | ResolvedSource,
        *,
        base: str | Path | None = None,
        dtype: str = "auto",
        context_length: int | None = None,
        max_running: int | None = None,
        cache_tokens: int | None = None,
        prefix_cache: bool = True,
        speculation: int = 0,
        cpu_step: str = "auto",
        weights: str = "auto",
        adapters: Mapping[str, str | Path] | None = None,
    ) -> None:
        self.source = source if isinstance(source, ResolvedSource) else resolve(source, base=base)
        self.tokenizer = open_tokenizer(self.source.tokenizer_dir, self.source.model_dir)
        self.template = open_chat_template(self.source.tokenizer_dir, self.source.model_dir)
        settings = EngineConfig.of(
            self.source,
            dtype=dtype,
            context_length=context_length,
            max_running=max_running,
            cache_tokens=cache_tokens,
            prefix_cache=prefix_cache,
            speculation=speculation,
            cpu_step=cpu_step,
            weights=weights,
        )
        self.core = NativeCore(settings)
        for name, directory in (adapters or {}).items():
            self.load_adapter(name, directory)

    def load_adapter(self, name: str, directory: str | Path) -> None:
        """Let calls give ``name`` for the LoRA adapter in ``directory``, which stays beside the weights.

        Raises:
            InputError: the name is taken, or the adapter cannot run unmerged on this source.
        """
        self.core.load_adapter(name, Path(directory))

    def unload_adapter(self, name: str) -> None:
        """Drop an adapter and free its memory.

        Raises:
            InputError: there is none of that name.
        """
        self.core.unload_adapter(name)

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        stop: Sequence[str] = (),
        n: int = 1,
        ignore_eos: bool = False,
        adapter: Adapter = None,
    ) -> list[Completion]:
        """Continue each prompt, a text or token ids, ``n`` times; the results are in the order of the prompts.

        ``adapter`` is the name of the adapter for all, or one for each prompt; None is the source as it is.

        Generation ends with the model's end tokens, unless ``ignore_eos``, and with ``stop_token_ids``, or when a text
        of ``stop`` appears. The samples of a prompt share its cache; where there is a seed, each has the one after the
        one before.

        Raises:
            RequestError: a prompt or a parameter cannot be served.
            EngineError: the model gave no finite probabilities.
        """
        params = params or SamplingParams()
        if not ignore_eos:
            params = self._with_end_tokens(params)
        if not 1 <= n <= MOST_SAMPLES:
            raise RequestError(f"n is {n}; choose from 1 to {MOST_SAMPLES}.", "n")
        if n > 1 and params.temperature == 0:
            raise RequestError("n above 1 would repeat the greedy answer; raise the temperature.", "n")
        runs: list[Run] = []
        requests: list[GenerationRequest] = []
        for prompt, name in zip(prompts, _each(adapter, len(prompts)), strict=True):
            ids = self._ids(prompt)
            for sample in range(n):
                seed = None if params.seed is None else params.seed + sample
                own = msgspec.structs.replace(params, seed=seed)
                requests.append(GenerationRequest(id=str(len(runs)), prompt_ids=ids, params=own, adapter=name))
                runs.append(Run(ids, Detokenizer(self.tokenizer), StopStrings(stop)))
        for output in outputs(self.core, requests):
            run = runs[int(output.id)]
            if run.stopped:
                continue
            run.add(output, _kept(output, params))
            if run.stopped:
                self.core.cancel(output.id)
        return [run.completion() for run in runs]

    def beam_search(
        self,
        prompts: Sequence[Prompt],
        *,
        beam_width: int = 4,
        max_tokens: int = 64,
        length_penalty: float = 1.0,
        early_stopping: bool = False,
        ignore_eos: bool = False,
        adapter: str | None = None,
    ) -> list[list[Beam]]:
        """Return the likeliest ways to continue each prompt, up to ``beam_width``, best first, as Transformers does.

        A beam's score is the sum of its log-probabilities divided by its length to the power of ``length_penalty``.
        ``early_stopping`` ends the search when there are ``beam_width`` finished beams.

        Raises:
            RequestError: a prompt or an argument cannot be served.
            EngineError: the model gave no finite probabilities.
        """
        ends = frozenset() if ignore_eos else frozenset(self._end_tokens())
        rules = BeamRules(beam_width, max_tokens, length_penalty, early_stopping, ends)
        return search(self.core, [self._ids(prompt) for prompt in prompts], rules, adapter)

    def score(self, texts: Sequence[Prompt], *, adapter: Adapter = None) -> list[Score]:
        """Return how likely the model finds each text, given its first token.

        Raises:
            RequestError: a text has fewer than two tokens, or does not fit in the context.
            EngineError: the model gave no finite probabilities.
        """
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
        requests: list[GenerationRequest] = []
        for text, name in zip(texts, _each(adapter, len(texts)), strict=True):
            ids = self._ids(text)
            if len(ids) < 2:
                raise RequestError("a text of fewer than two tokens has no probability; give a longer one.", "prompt")
            requests.append(GenerationRequest(id=str(len(requests)), prompt_ids=ids, params=params, adapter=name))
        found = {output.id: output.prompt_logprobs or [] for output in outputs(self.core, requests)}
        return [Score(request.prompt_ids, [entry.logprob for entry in found[request.id]]) for request in requests]

    def embed(self, texts: Sequence[Prompt], *, pooling: Pool = "mean", adapter: Adapter = None) -> torch.Tensor:
        """Return the hidden states of each text after the last norm: their mean, or the last; float32 (texts, hidden).

        Raises:
            RequestError: a text has no tokens, or does not fit in the context; or the pooling is not known.
            EngineError: the model gave no finite numbers.
        """
        if pooling not in POOLS:
            raise RequestError(f"the pooling {pooling!r} is not known; choose {' or '.join(POOLS)}.", "pooling")
        params = SamplingParams(temperature=0, max_tokens=1)
        requests = [
            GenerationRequest(id=str(index), prompt_ids=self._ids(text), params=params, adapter=name)
            for index, (text, name) in enumerate(zip(texts, _each(adapter, len(texts)), strict=True))
        ]
        states = {output.id: output.pooled for output in outputs(self.core, requests, pooling)}
        return torch.tensor([states[request.id] for request in requests], dtype=torch.float32)

    def chat(
        self,
        conversations: Sequence[Conversation],
        params: SamplingParams | None = None,
        *,
        stop: Sequence[str] = (),
        adapter: Adapter = None,
    ) -> list[Completion]:
        """Answer each conversation, a list of messages with ``role`` and ``content``; see :meth:`generate`.

        Raises:
            TextError: the model has no chat template, or its template fails.
        """
        prompts = [self.prompt_of(messages) for messages in conversations]
        return self.generate(prompts, params, stop=stop, adapter=adapter)

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> Iterator[str]:
        """Continue one prompt, yielding text as soon as it is final; see :meth:`generate`."""
        params = self._with_end_tokens(params or SamplingParams())
        detokenizer = Detokenizer(self.tokenizer)
        request = GenerationRequest(id="stream", prompt_ids=self._ids(prompt), params=params, adapter=adapter)
        for output in outputs(self.core, [request]):
            yield detokenizer.push(_kept(output, params))
        yield detokenizer.finish()

    def prompt_of(self, messages: Conversation) -> list[int]:
        """Render a conversation and return its token ids.

        Raises:
            TextError: the model has no chat template, or its template fails.
        """
        if self.template is None:
            raise TextError(
                f"{self.source.name} has no chat template; give a plain prompt, or add chat_template.jinja to "
                f"{self.source.tokenizer_dir}."
            )
        return self.tokenizer.encode(self.template.render(messages), add_special_tokens=False)

    def _ids(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt, add_special_tokens=True) if isinstance(prompt, str) else list(prompt)

    def _with_end_tokens(self, params: SamplingParams) -> SamplingParams:
        ends = {*params.stop_token_ids, *self._end_tokens()}
        return msgspec.structs.replace(params, stop_token_ids=tuple(sorted(ends)))

    def _end_tokens(self) -> set[int]:
        return {token for token in self.tokenizer.end_token_ids if token < self.core.info.vocab_size}


def _each(adapter: Adapter, count: int) -> Sequence[str | None]:
    """Return the adapter of each of ``count`` prompts."""
    if adapter is None or isinstance(adapter, str):
        return [adapter] * count
    if len(adapter) != count:
        raise RequestError(f"there are {count} prompts and {len(adapter)} adapters; give one for each.", "adapter")
    return adapter


def _kept(output: Output, params: SamplingParams) -> list[int]:
    """Return the tokens to show; one that ends the sequence is not text."""
    return [] if output.token is None or output.token in params.stop_token_ids else [output.token]
