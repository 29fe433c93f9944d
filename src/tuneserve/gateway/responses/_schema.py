"""The body of ``/v1/responses``."""

from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, AliasChoices, Discriminator, Field, Tag

from tuneserve.gateway._errors import ApiError
from tuneserve.gateway.schemas import JsonObject, Schema, ToolName, parse
from tuneserve.gateway.schemas._base import (
    MAX_MESSAGES,
    PARSED,
    TIERS,
    Count,
    Effort,
    Hint,
    Metadata,
    PromptCacheBreakpoint,
    PromptCacheOptions,
    ServiceTier,
)
from tuneserve.gateway.schemas._generation import MAX_TOP_LOGPROBS
from tuneserve.gateway.schemas._neutral import Neutral

_MAX_TOOLS = 128
LOGPROBS = "message.output_text.logprobs"

NEUTRAL: Neutral = {
    "access_programs": ({"cyber": "standard"},),
    "background": (False,),
    "background_options": (),
    "context_management": (),
    "conversation": (),
    "image": ({"context_compression": "auto"}, {"context_compression": "disabled"}),
    "max_tool_calls": (),
    "moderation": (),
    "prompt": (),
    "truncation": ("disabled",),
}
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class InputText(Schema):
    """A part of a message."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    prompt_cache_breakpoint: PromptCacheBreakpoint | None = Field(default=None, description="No effect.")
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: list[Any] | None = Field(default=None, description="No effect, as in all that was answered before.")
    parsed: Any = Field(default=None, description=PARSED)


class InputMessage(Schema):
    """One turn of a conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[InputText], Field(max_length=MAX_MESSAGES, fail_fast=True)]
    id: Hint | None = None
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | None = Field(default=None, description="No effect.")


def _json_object(value: str) -> str:
    try:
        decoded: Any = msgspec.json.decode(value or "{}")
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        decoded = None
    if not isinstance(decoded, dict):
        raise ValueError("it is not the text of a JSON object")
    return value


# OpenAI's Python client calls it by the second name in what it gives back.
Async = Annotated[
    Literal[False] | None,
    Field(validation_alias=AliasChoices("async", "async_"), serialization_alias="async", description="Not supported."),
]


class DirectCall(Schema):
    """The model itself made the call."""

    type: Literal["direct"]


class FunctionCallItem(Schema):
    """A call that the assistant made."""

    type: Literal["function_call"]
    call_id: Hint
    name: ToolName
    arguments: Annotated[str, AfterValidator(_json_object)]
    parsed_arguments: Any = Field(default=None, description=PARSED)
    namespace: None = None
    caller: DirectCall | None = None
    async_: Async = None
    id: Hint | None = None
    status: ItemStatus | None = None


class FunctionCallOutput(Schema):
    """What a call brought."""

    type: Literal["function_call_output"]
    call_id: Hint
    output: str | Annotated[list[InputText], Field(max_length=MAX_MESSAGES, fail_fast=True)]
    name: ToolName | None = Field(default=None, description="Handed to the chat template.")
    namespace: None = None
    caller: DirectCall | None = None
    id: Hint | None = None
    status: ItemStatus | None = None


class ReasoningText(Schema):
    """A part of what the assistant thought."""

    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(Schema):
    """What the assistant thought."""

    type: Literal["reasoning"]
    id: Hint | None = None
    summary: Annotated[list[Any], Field(max_length=0)] | None = None
    content: Annotated[list[ReasoningText], Field(max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    encrypted_content: None = None
    status: ItemStatus | None = None


def _kind(item: Any) -> str:
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return kind if isinstance(kind, str) else "message"


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]


class ResponseTool(Schema):
    """A function that the model may call."""

    type: Literal["function"]
    name: ToolName
    description: Annotated[str, Field(max_length=65536)] | None = None
    parameters: JsonObject | None = Field(default=None, description="A JSON schema of the arguments.")
    strict: bool | None = Field(
        default=None,
        description="Arguments satisfy the schema whenever tool_choice is required or names a function.",
    )
    allowed_callers: Annotated[list[Literal["direct"]], Field(max_length=1)] | None = None
    defer_loading: Literal[False] | None = None
    output_schema: None = None
    async_: Async = None


class ResponseToolName(Schema):
    """The one function to call."""

    type: Literal["function"]
    name: ToolName


class ResponseAllowedTools(Schema):
    """Only some of the tools; the model does not see the others."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[ResponseToolName], Field(min_length=1, max_length=_MAX_TOOLS, fail_fast=True)]


ResponseToolChoice = (
    Literal["none", "auto", "required"]
    | Annotated[ResponseToolName | ResponseAllowedTools, Field(discriminator="type")]
)


class PlainFormat(Schema):
    """Output without a form."""

    type: Literal["text"]


class ObjectFormat(Schema):
    """Output that is a JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Schema):
    """Output that satisfies a JSON schema."""

    type: Literal["json_schema"]
    name: Annotated[str, Field(max_length=256)]
    schema_: JsonObject = Field(alias="schema")
    description: Annotated[str, Field(max_length=65536)] | None = Field(default=None, description="No effect.")
    strict: bool | None = Field(default=None, description="The schema is enforced either way.")


class TextConfig(Schema):
    """The form of the output."""

    format: Annotated[PlainFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningConfig(Schema):
    """How much to think."""

    effort: Effort | None = Field(default=None, description="Where the chat template knows of it.")
    context: Literal["auto"] | None = Field(default=None, description="The chat template decides.")
    mode: Literal["standard"] | None = None
    summary: None = Field(default=None, description="Thoughts are returned as they are.")
    generate_summary: None = Field(default=None, description="The former name of summary.")


class ResponseStreamOptions(Schema):
    """What a stream carries beside its text."""

    include_obfuscation: Literal[False] | None = Field(
        default=None, description="Padding against eavesdroppers is not made."
    )


class ResponsesRequest(Schema):
    """The body of ``/v1/responses``."""

    model: str = Field(description="The model, or one of its adapters.")
    input: str | Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] = Field(
        description="A text, or the items of a conversation."
    )
    instructions: str | None = Field(default=None, description="A system message, of this response only.")
    previous_response_id: Hint | None = Field(
        default=None, description="Go on after a response that this server still stores."
    )
    store: bool | None = Field(
        default=None,
        description="Keep the response in memory until newer ones need the room or the server ends; true.",
    )
    stream: bool | None = Field(default=None, description="Send events while the response is generated.")
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: Count | None = Field(default=None, description="At most so many tokens are generated.")
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(default=None, description="0 is greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=_MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ResponseToolChoice | None = Field(
        default=None, description="required and a named function are enforced by a grammar."
    )
    parallel_tool_calls: bool | None = Field(default=None, description="Whether there may be several calls; true.")
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    include: Annotated[list[Literal["message.output_text.logprobs"]], Field(max_length=16)] | None = Field(
        default=None, description="Tell the log-probability of each token."
    )
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        default=None, description="Tell those of so many of the likeliest tokens too; only with include."
    )
    service_tier: ServiceTier | None = Field(default=None, description=TIERS)
    metadata: Metadata | None = Field(default=None, description="Returned with the response.")
    user: Hint | None = Field(default=None, description="No effect.")
    prompt_cache_key: Hint | None = Field(default=None, description="No effect.")
    prompt_cache_options: PromptCacheOptions | None = Field(default=None, description="No effect.")
    prompt_cache_retention: Hint | None = Field(default=None, description="No effect.")
    safety_identifier: Hint | None = Field(default=None, description="No effect.")


def parse_response(body: dict[str, Any], lenient: bool) -> ResponsesRequest:
    """Check the body of a response.

    Raises:
        ApiError: a field is wrong, named by ``param``.
    """
    request = parse(ResponsesRequest, body, NEUTRAL, lenient)
    if request.stream_options is not None and not request.stream:
        message = "'stream_options' is only allowed with 'stream': true; send both or neither."
        raise ApiError(400, message, param="stream_options", code="invalid_value")
    if request.top_logprobs and not request.include:
        message = f"'top_logprobs' is only allowed with 'include': [{LOGPROBS!r}]; send both or neither."
        raise ApiError(400, message, param="top_logprobs", code="invalid_value")
    return request
