"""The ``usage`` object of chat and plain completions."""

from tuneserve.gateway._shapes import Json, Usage


def usage_of(usage: Usage) -> Json:
    """Return the ``usage`` object."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.generated,
        "total_tokens": usage.prompt + usage.generated,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }
