"""The ``usage`` object of chat and plain completions."""

from tuneserve.gateway._shapes import Json, Usage


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
