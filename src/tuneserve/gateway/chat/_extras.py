"""What answers of chat and plain completions have beside their text."""

from collections.abc import Sequence
from dataclasses import dataclass

from tuneserve.gateway._logprobs import TokenNames, prompt_logprobs
from tuneserve.gateway._parts import Sample
from tuneserve.gateway._shapes import Json, Usage
from tuneserve.gateway.schemas import Generation


@dataclass(frozen=True)
class Extras:
    """What a request wants of it.

    ``usage`` is for the end of a stream, ``running_usage`` for each chunk. ``prompt_logprobs`` None is without them.
    """

    usage: bool = False
    running_usage: bool = False
    token_ids: bool = False
    prompt_logprobs: int | None = None

    @classmethod
    def of(cls, body: Generation) -> "Extras":
        """Return what ``body`` wants."""
        options = body.stream_options
        return cls(
            usage=options is not None and bool(options.include_usage),
            running_usage=options is not None and bool(options.continuous_usage_stats),
            token_ids=bool(body.return_token_ids),
            prompt_logprobs=body.prompt_logprobs,
        )

    def prompt_ids(self, sample: Sample) -> Json:
        """Return the field with the tokens of a prompt, where wanted."""
        return {"prompt_token_ids": sample.prompt_ids} if self.token_ids else {}

    def ids(self, ids: Sequence[int]) -> Json:
        """Return the field with tokens of the output, where wanted."""
        return {"token_ids": ids} if self.token_ids else {}

    def scores(self, names: TokenNames, sample: Sample) -> Json:
        """Return the field with the log-probabilities of a prompt, where wanted."""
        if self.prompt_logprobs is None:
            return {}
        return {"prompt_logprobs": prompt_logprobs(names, sample.prompt or (), self.prompt_logprobs)}

    def usage_so_far(self, sample: Sample) -> Json | None:
        """Return the usage of one sample, where wanted."""
        if not self.running_usage:
            return None
        return usage_of(Usage(len(sample.prompt_ids), sample.tokens, sample.reasoning_tokens, sample.cached))


def usage_of(usage: Usage) -> Json:
    """Return the ``usage`` object."""
    details = {} if usage.cached is None else {"prompt_tokens_details": {"cached_tokens": usage.cached}}
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.generated,
        "total_tokens": usage.prompt + usage.generated,
        **details,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }
