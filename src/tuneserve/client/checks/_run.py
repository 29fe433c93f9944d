"""The list of checks, and running them."""

import time
from collections.abc import Callable, Iterator
from functools import partial

from tuneserve.client import ApiError, OpenAIClient, ProtocolError, TransportError
from tuneserve.client._errors import quoted
from tuneserve.client.checks import _apis, _errors, _fields, _generation, _optional, _vllm
from tuneserve.client.checks._result import Check, CheckResult, Finding, Outcome, Target, expect

REACHABLE = "server reachable"
_MODELS = "models list"
_REQUIRED: dict[str, Check] = {
    "unknown model": _errors.unknown_model,
    "chat": _generation.chat,
    "chat streaming": _generation.chat_streaming,
    "streaming usage": _generation.streaming_usage,
    "usage": _generation.usage,
    "max_tokens": _generation.max_tokens,
    "stop": _generation.stop,
    "seed": _generation.seed,
    "temperature 0": _generation.temperature_zero,
    "completions": _generation.completions,
    "completions streaming": _generation.completions_streaming,
    "concurrent requests": _generation.concurrent_requests,
    "invalid JSON": _errors.invalid_json,
    "invalid value": _errors.invalid_value,
    "error form": _errors.error_form,
}
_OPTIONAL: dict[str, Check] = {
    "n": _optional.several_choices,
    "logprobs": _optional.logprobs,
    "tools": _optional.tools,
    "json_schema": _optional.json_schema,
    "health": _optional.health,
}
# What only some servers have. The JavaScript checker has the checks above alone, and says so.
_FURTHER: dict[str, Check] = {
    "unknown field": _fields.unknown_field,
    "developer role": _fields.developer_role,
    "content parts": _fields.content_parts,
    "continue_final_message": _fields.continued_message,
    "several prompts": _fields.several_prompts,
    "token prompts": _fields.token_prompts,
    "echo": _fields.echo,
    "completion logprobs": _fields.completion_logprobs,
    "prompt_logprobs": _vllm.prompt_logprobs,
    "return_token_ids": _vllm.token_ids,
    "continuous_usage_stats": _vllm.running_usage,
    "logit_bias": _fields.logit_bias,
    "bad_words": _fields.bad_words,
    "min_tokens": _fields.min_tokens,
    "ignore_eos": _fields.ignore_eos,
    "json_object": _fields.json_object,
    "regex": _fields.guided_regex,
    "choice": _fields.guided_choice,
    "tool_choice required": _fields.tool_required,
    "tool_choice none": _fields.tools_unused,
    "tools streaming": _fields.tool_streaming,
    "responses": _apis.responses,
    "responses streaming": _apis.responses_streaming,
    "previous_response_id": _apis.previous_response,
    "embeddings": _apis.embeddings,
    "embeddings base64": _apis.embeddings_base64,
    "messages": _apis.anthropic_messages,
    "messages streaming": _apis.anthropic_streaming,
    "count_tokens": _apis.count_tokens,
    "tokenize": _apis.tokenize,
    "openapi": _apis.openapi,
}
_ALL = _REQUIRED | _OPTIONAL | _FURTHER
# Statuses that say something about the caller or the load, not about the feature.
_NO_REFUSALS = (401, 403, 408, 429)
_LONGEST_DETAIL = 500


def run_checks(client: OpenAIClient, model: str | None = None) -> Iterator[CheckResult]:
    """Run every check in order; ``model`` None is the first that the server lists.

    The first result is :data:`REACHABLE`, and the only one if it failed. A feature that is optional and refused with a
    4xx is ``unsupported``; what the model at hand cannot show is ``skipped``.
    """
    reached = _timed(REACHABLE, lambda: _reach(client))
    yield reached
    if reached.outcome != "pass":
        return
    names: list[str] = []
    yield _timed(_MODELS, lambda: _list(client, names))
    if model is None and not names:
        for name in _ALL:
            yield CheckResult(name, "skipped", "no model is known; name one.", 0)
        return
    target = Target(client, model or names[0])
    for name, check in _ALL.items():
        yield _timed(name, partial(check, target), optional=name not in _REQUIRED)


def _reach(client: OpenAIClient) -> str:
    status = client.get("/v1/models").status
    return f"{client.url} answers with status {status}."


def _list(client: OpenAIClient, names: list[str]) -> str:
    names += [model.id for model in client.models()]
    expect(names, "the list of models is empty.")
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"it lists {quoted(names[0])}{more}."


def _timed(name: str, check: Callable[[], str], *, optional: bool = False) -> CheckResult:
    started = time.perf_counter()
    outcome, detail = _run(check, optional)
    milliseconds = round((time.perf_counter() - started) * 1000)
    if len(detail) > _LONGEST_DETAIL:
        detail = detail[:_LONGEST_DETAIL] + "…"
    return CheckResult(name, outcome, detail, milliseconds)


def _run(check: Callable[[], str], optional: bool) -> tuple[Outcome, str]:
    try:
        return "pass", check()
    except Finding as finding:
        return finding.outcome, finding.detail
    except ApiError as error:
        refused = optional and 400 <= error.status < 500 and error.status not in _NO_REFUSALS
        if refused:
            return "unsupported", f"it is refused with status {error.status} ({error.message})."
        return "fail", str(error)
    except (TransportError, ProtocolError) as error:
        return "fail", str(error)
