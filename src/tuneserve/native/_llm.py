"""Offline generation: prompts or conversations in, texts out, in this process."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tuneserve.engines.contract import FinishReason, GenerationRequest, SamplingParams, TokenLogprob
from tuneserve.errors import EngineError, RequestError, TextError
from tuneserve.native._engine import NativeCore, Output
from tuneserve.native._load import EngineConfig
from tuneserve.sources import ResolvedSource, resolve
from tuneserve.text import Detokenizer, StopStrings, open_chat_template, open_tokenizer

Prompt = str | Sequence[int]
Conversation = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Completion:
    """What followed one prompt; the text is cut before a stop string and leaves special tokens out.

    ``logprobs`` has an entry per token, ``prompt_logprobs`` one per token of the prompt but the first, where they were
    asked for.
    """

    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None


class LLM:
    """A model in this process, for batches of prompts.

    Args:
        source: what to run; see :func:`tuneserve.sources.resolve`.
        base: the base to use instead of the one that an adapter names.
        dtype: auto, float32, bfloat16 or float16.
        context_length: tokens per sequence, prompt included; None takes the model's, up to 8192.
        max_running: sequences computed together; None is 64.
        cache_tokens: tokens that the cache holds; None takes what fits in memory, up to ``max_running`` full contexts.
        prefix_cache: whether a prompt uses what was computed for an equal beginning of another one.

    Raises:
        InputError: the source cannot be run as it is.
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
    ) -> None:
        self.source = source if isinstance(source, ResolvedSource) else resolve(source, base=base)
        self.tokenizer = open_tokenizer(self.source.tokenizer_dir, self.source.model_dir)
        self.template = open_chat_template(self.source.tokenizer_dir) or open_chat_template(self.source.model_dir)
        settings = EngineConfig.of(
            self.source,
            dtype=dtype,
            context_length=context_length,
            max_running=max_running,
            cache_tokens=cache_tokens,
            prefix_cache=prefix_cache,
        )
        self.core = NativeCore(settings)

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | None = None, *, stop: Sequence[str] = ()
    ) -> list[Completion]:
        """Continue each prompt, a text or token ids; the results are in the order of the prompts.

        Generation ends with the model's end tokens and with ``stop_token_ids``, or when a text of ``stop`` appears.

        Raises:
            RequestError: a prompt or a parameter cannot be served; nothing was generated.
            EngineError: the model gave no finite probabilities.
        """
        params = self._with_end_tokens(params or SamplingParams())
        runs = [_Run(self._ids(prompt), Detokenizer(self.tokenizer), StopStrings(stop)) for prompt in prompts]
        requests = {str(index): run for index, run in enumerate(runs)}
        try:
            for request_id, run in requests.items():
                self.core.add(GenerationRequest(id=request_id, prompt_ids=run.prompt_ids, params=params))
            while not self.core.idle:
                self._advance(requests, params)
        finally:
            for request_id in requests:
                self.core.cancel(request_id)
        return [run.completion() for run in runs]

    def chat(
        self, conversations: Sequence[Conversation], params: SamplingParams | None = None, *, stop: Sequence[str] = ()
    ) -> list[Completion]:
        """Answer each conversation, a list of messages with ``role`` and ``content``; see :meth:`generate`.

        Raises:
            TextError: the model has no chat template, or its template fails.
        """
        return self.generate([self.prompt_of(messages) for messages in conversations], params, stop=stop)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[str]:
        """Continue one prompt, yielding text as soon as it is final; see :meth:`generate`."""
        params = self._with_end_tokens(params or SamplingParams())
        detokenizer = Detokenizer(self.tokenizer)
        request = GenerationRequest(id="stream", prompt_ids=self._ids(prompt), params=params)
        self.core.add(request)
        try:
            while not self.core.idle:
                for output in self.core.step():
                    yield detokenizer.push(_kept(output, params))
            yield detokenizer.finish()
        finally:
            self.core.cancel(request.id)

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

    def _advance(self, requests: Mapping[str, "_Run"], params: SamplingParams) -> None:
        for output in self.core.step():
            run = requests[output.id]
            run.add(output, _kept(output, params))
            if run.stopped:
                self.core.cancel(output.id)
            elif output.finish_reason:
                run.finish_reason = output.finish_reason

    def _ids(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt, add_special_tokens=True) if isinstance(prompt, str) else list(prompt)

    def _with_end_tokens(self, params: SamplingParams) -> SamplingParams:
        ends = {token for token in self.tokenizer.end_token_ids if token < self.core.info.vocab_size}
        return msgspec.structs.replace(params, stop_token_ids=tuple(sorted({*params.stop_token_ids, *ends})))


class _Run:
    """One prompt on its way: its tokens, and its text as far as it is final."""

    def __init__(self, prompt_ids: list[int], detokenizer: Detokenizer, stops: StopStrings) -> None:
        self.prompt_ids = prompt_ids
        self.finish_reason: FinishReason = "stop"
        self.stopped = False
        self._detokenizer = detokenizer
        self._stops = stops
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: list[TokenLogprob] | None = None
        self._text = ""

    def add(self, output: Output, shown: list[int]) -> None:
        if output.token is not None:
            self._tokens.append(output.token)
        if output.logprob is not None:
            self._logprobs.append(output.logprob)
        if output.prompt_logprobs is not None:
            self._prompt_logprobs = output.prompt_logprobs
        self._push(self._detokenizer.push(shown))

    def completion(self) -> Completion:
        if not self.stopped:
            self._push(self._detokenizer.finish())
        if not self.stopped:
            self._text += self._stops.finish()
        return Completion(
            self.prompt_ids, self._tokens, self._text, self.finish_reason, self._logprobs or None, self._prompt_logprobs
        )

    def _push(self, text: str) -> None:
        safe, match = self._stops.push(text)
        self._text += safe
        if match is not None:
            self.stopped, self.finish_reason = True, "stop"


def _kept(output: Output, params: SamplingParams) -> list[int]:
    """Return the tokens to show; one that ends the sequence is not text."""
    if output.refused:
        raise RequestError(output.refused, "grammar")
    if output.failed:
        raise EngineError(output.failed)
    return [] if output.token is None or output.token in params.stop_token_ids else [output.token]
