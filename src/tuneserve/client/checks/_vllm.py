"""Fields that vLLM takes beside OpenAI's: refused, or they do what they do there."""

from typing import Any

from tuneserve.client.checks._ask import Json, ask, at, events
from tuneserve.client.checks._result import Target, expect

_COMPLETIONS = "/v1/completions"
_COUNTING: Json = {"prompt": "One, two, three, four,", "max_tokens": 4, "temperature": 0}


def running_usage(target: Target) -> str:
    """With ``continuous_usage_stats`` each chunk has the usage so far."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = [chunk for _, chunk in events(target, _COMPLETIONS, {**_COUNTING, "stream_options": options})]
    counts = [at(chunk, "usage", "completion_tokens") for chunk in chunks]
    expect(None not in counts, "there are chunks without a usage.")
    expect(counts == sorted(counts), "the tokens generated so far become fewer.")
    return f"each of {len(counts)} chunks has the usage so far."


def prompt_logprobs(target: Target) -> str:
    """``prompt_logprobs`` has an entry for each token of the prompt, none above 0."""
    answer = ask(target, _COMPLETIONS, {**_COUNTING, "prompt_logprobs": 1})
    found = at(answer, "choices", 0, "prompt_logprobs") or []
    count = at(answer, "usage", "prompt_tokens")
    expect(found and len(found) == count, f"there are {len(found)} entries for {count} tokens.")
    values: list[Any] = [at(each, "logprob") for entry in found[1:] for each in (entry or {}).values()]
    expect(len(values) >= len(found) - 1, "there is a token without a log-probability.")
    expect(all(isinstance(value, int | float) and value <= 0 for value in values), "a logprob is above 0.")
    return f"there are log-probabilities for the {count} tokens of the prompt."


def token_ids(target: Target) -> str:
    """``return_token_ids`` tells the tokens of prompt and output."""
    answer = ask(target, _COMPLETIONS, {**_COUNTING, "return_token_ids": True})
    for field, counted in (("prompt_token_ids", "prompt_tokens"), ("token_ids", "completion_tokens")):
        ids, count = at(answer, "choices", 0, field) or [], at(answer, "usage", counted)
        expect(ids and len(ids) == count, f"{field} has {len(ids)} tokens instead of {count}.")
    return "the token ids of prompt and output are told."
