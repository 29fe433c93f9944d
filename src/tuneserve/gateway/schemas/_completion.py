"""The body of ``/v1/completions``."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from tuneserve.gateway._errors import ApiError
from tuneserve.gateway.schemas import _neutral
from tuneserve.gateway.schemas._base import MAX_COUNT, Count, TokenIds, parse
from tuneserve.gateway.schemas._generation import MAX_SAMPLES, MAX_TOP_LOGPROBS, Generation, check_generation


def _prompts(value: object) -> object:
    single = isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int))
    return [value] if single else value


Prompts = Annotated[
    Annotated[list[str], Field(fail_fast=True)] | Annotated[list[TokenIds], Field(fail_fast=True)],
    Field(min_length=1, max_length=MAX_SAMPLES),
    BeforeValidator(_prompts, json_schema_input_type=str | list[str] | TokenIds | list[TokenIds]),
]


class CompletionRequest(Generation):
    """The body of ``/v1/completions``."""

    prompt: Prompts = Field(description="A text, token ids, or a list of either.")
    max_tokens: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = Field(
        default=None, description="At most so many tokens are generated; 16. 0 only with echo."
    )
    echo: bool | None = Field(default=None, description="Return the prompt before its continuation.")
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        default=None, description="Tell the log-probability of each token, and of so many of the likeliest."
    )
    add_special_tokens: bool | None = Field(
        default=None, description="Add what begins a text, like BOS, to prompts that are texts; true."
    )
    best_of: Count | None = Field(default=None, description="Only as many as n: all that are made are returned.")


def parse_completion(body: dict[str, Any], lenient: bool = False) -> CompletionRequest:
    """Check the body of a plain completion.

    Raises:
        ApiError: a field is wrong, named by ``param``.
    """
    request = parse(CompletionRequest, body, _neutral.COMPLETION, lenient)
    check_generation(request)
    if len(request.prompt) * (request.n or 1) > MAX_SAMPLES:
        message = f"'n' times the prompts are more than {MAX_SAMPLES} samples; ask for fewer at once."
        raise ApiError(400, message, param="n", code="invalid_value")
    if request.best_of not in (None, request.n or 1):
        message = "'best_of' is not the same as 'n', and all samples that are made are returned; leave it out."
        raise ApiError(400, message, param="best_of", code="invalid_value")
    if request.max_tokens == 0 and not request.echo:
        message = "'max_tokens' 0 is only allowed with 'echo': true; ask for at least one token."
        raise ApiError(400, message, param="max_tokens", code="invalid_value")
    return request
