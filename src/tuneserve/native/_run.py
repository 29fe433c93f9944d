"""A prompt on its way to a text."""

from dataclasses import dataclass

from tuneserve.engines.contract import FinishReason, TokenLogprob
from tuneserve.native._engine import Output
from tuneserve.text import Detokenizer, StopStrings


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


class Run:
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
        """Take the next token, whose text is that of ``shown``."""
        assert output.token is not None
        self._tokens.append(output.token)
        self.finish_reason = output.finish_reason or self.finish_reason
        if output.logprob is not None:
            self._logprobs.append(output.logprob)
        if output.prompt_logprobs is not None:
            self._prompt_logprobs = output.prompt_logprobs
        self._push(self._detokenizer.push(shown))

    def completion(self) -> Completion:
        """Return what has become of it."""
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
