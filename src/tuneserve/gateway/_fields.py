"""OpenAI fields that this server does not implement, and the values of theirs that ask for nothing."""

from collections.abc import Collection, Mapping
from typing import Any

from tuneserve.gateway._errors import ApiError, quoted

# A field is refused unless its value is null or one of these.
Neutral = Mapping[str, tuple[object, ...]]

_SHARED: Neutral = {
    "n": (1,),
    "logit_bias": ({},),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
}
CHAT: Neutral = {
    **_SHARED,
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt_cache_options": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
COMPLETION: Neutral = {
    **_SHARED,
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (),
    "suffix": ("",),
}
MESSAGE: Neutral = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
    "tool_calls": ([],),
}


def drop_neutral(fields: Mapping[str, Any], known: Collection[str], neutral: Neutral, path: str = "") -> dict[str, Any]:
    """Return the ``known`` ones of ``fields``; ``path`` is what their names are prefixed with in messages.

    Raises:
        ApiError: another has a value that asks for something, or is no field at all.
    """
    kept = {}
    for name, value in fields.items():
        if name in known:
            kept[name] = value
        elif name not in neutral:
            shown = quoted(path + name)
            message = f"Unknown parameter {shown}; remove it."
            raise ApiError(400, message, param=shown[1:-1], code="unknown_parameter")
        elif value is not None and not any(type(value) is type(same) and value == same for same in neutral[name]):
            choices = " or ".join(map(repr, neutral[name]))
            remedy = f"leave it out or send {choices}" if choices else "leave it out"
            message = f"'{path}{name}' is not supported with this value; {remedy}."
            raise ApiError(400, message, param=path + name, code="unsupported_parameter")
    return kept
