"""What a server may refuse, as long as it says so; to take a field and ignore it is a failure."""

from typing import Any

from tuneserve.client.checks._ask import NO_SUCH_PATH, parsed
from tuneserve.client.checks._result import Finding, Target, expect

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
# Few documents satisfy it, so that a small model cannot ramble.
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"even": {"type": "boolean"}, "size": {"type": "string", "enum": ["small", "large"]}},
    "required": ["even", "size"],
    "additionalProperties": False,
}


def several_choices(target: Target) -> str:
    """``n`` 2 gives two choices."""
    answer = target.chat(n=2, temperature=1, max_tokens=8)
    indexes = sorted(choice.index for choice in answer.choices)
    expect(indexes == [0, 1], f"with n 2 the choices have the indexes {indexes} instead of [0, 1].")
    return "with n 2 there are two choices."


def logprobs(target: Target) -> str:
    """``logprobs`` gives log-probabilities, with as many alternatives as asked for."""
    answer = target.chat(logprobs=True, top_logprobs=2, temperature=0, max_tokens=8)
    found = answer.choices[0].logprobs
    tokens = (found and found.content) or []
    expect(tokens, "the answer has no logprobs.")
    expect(all(token.logprob <= 0 for token in tokens), "a logprob is above 0, which is no probability.")
    expect(all(1 <= len(token.top_logprobs) <= 2 for token in tokens), "a token has not one or two top_logprobs.")
    return f"there are logprobs for {len(tokens)} tokens."


def tools(target: Target) -> str:
    """A tool that ``tool_choice`` names is called, with arguments that are JSON."""
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = target.chat("What is the weather in Oslo?", tools=[TOOL], tool_choice=choice, temperature=0, max_tokens=64)
    calls = answer.choices[0].message.tool_calls or []
    expect(calls, "the tool that tool_choice names is not called.")
    call = calls[0].function
    expect(call.name == "get_weather", f"the tool {call.name!r} is called instead of 'get_weather'.")
    arguments = parsed(call.arguments)
    expect(isinstance(arguments, dict) and "city" in arguments, "the call's arguments do not have the field 'city'.")
    return "the tool that tool_choice names is called."


def json_schema(target: Target) -> str:
    """``response_format`` with a JSON schema gives a document that satisfies it."""
    schema = {"name": "number", "schema": _SCHEMA, "strict": True}
    answer = target.chat(
        "Describe the number eight as JSON.",
        response_format={"type": "json_schema", "json_schema": schema},
        temperature=0,
        max_tokens=64,
    )
    value = parsed(answer.text)
    fits = (
        isinstance(value, dict)
        and value.keys() == {"even", "size"}
        and isinstance(value["even"], bool)
        and value["size"] in ("small", "large")
    )
    expect(fits, "the answer does not satisfy the schema.")
    return "the answer satisfies the schema."


def health(target: Target) -> str:
    """``/health`` says 200."""
    status = target.client.get("/health").status
    if status in NO_SUCH_PATH:
        raise Finding("unsupported", "there is no /health.")
    expect(status == 200, f"/health is answered with {status} instead of 200.")
    return "/health is answered with 200."
