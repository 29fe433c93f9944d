"""The bodies of ``/v1/messages`` and ``/v1/messages/count_tokens``."""

from typing import Annotated, Any, Literal

from pydantic import Field

from tuneserve.gateway.schemas import JsonObject, Schema, ToolName, parse
from tuneserve.gateway.schemas._base import MAX_MESSAGES, Count, Hint, StopString
from tuneserve.gateway.schemas._neutral import Neutral

_MAX_BLOCKS = 10_000
_MAX_TOOLS = 128

NEUTRAL: Neutral = {
    "container": (),
    "context_management": (),
    "diagnostics": (),
    "inference_geo": (),
    "mcp_servers": ([],),
    "speed": ("standard",),
    "user_profile_id": (),
    "workspace_id": (),
}


class CacheControl(Schema):
    """Where a prompt may be cut for a cache; equal beginnings of prompts are shared anyway."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Schema):
    """Text."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Annotated[list[Any], Field(max_length=0)] | None = None


class ThinkingBlock(Schema):
    """What the assistant thought."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = Field(default=None, description="No effect.")


class DirectCaller(Schema):
    """The model itself made the call."""

    type: Literal["direct"]


class ToolUseBlock(Schema):
    """A call that the assistant made."""

    type: Literal["tool_use"]
    id: Hint
    name: ToolName
    input: JsonObject
    caller: DirectCaller | None = Field(default=None, description="As it was answered.")
    toolset_name: None = None
    cache_control: CacheControl | None = None


class ToolResultBlock(Schema):
    """What a call brought."""

    type: Literal["tool_result"]
    tool_use_id: Hint
    content: str | Annotated[list[TextBlock], Field(max_length=_MAX_BLOCKS, fail_fast=True)] | None = None
    is_error: bool | None = Field(default=None, description="The model reads the content either way.")
    toolset_name: None = None
    cache_control: CacheControl | None = None


Block = Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class Turn(Schema):
    """One turn of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Field(max_length=_MAX_BLOCKS, fail_fast=True)]


class MessagesTool(Schema):
    """A function that the model may call."""

    type: Literal["custom"] | None = None
    name: ToolName
    description: Annotated[str, Field(max_length=65536)] | None = None
    input_schema: JsonObject = Field(description="A JSON schema of the arguments.")
    strict: bool | None = Field(
        default=None, description="Arguments satisfy the schema whenever tool_choice is any or names a tool."
    )
    eager_input_streaming: bool | None = Field(
        default=None, description="Arguments are sent while they are generated either way."
    )
    allowed_callers: Annotated[list[Literal["direct"]], Field(max_length=1)] | None = None
    defer_loading: Literal[False] | None = None
    input_examples: Annotated[list[Any], Field(max_length=0)] | None = None
    cache_control: CacheControl | None = None


class AutoChoice(Schema):
    """The model decides."""

    type: Literal["auto"]
    disable_parallel_tool_use: bool | None = None


class AnyChoice(Schema):
    """The model calls something."""

    type: Literal["any"]
    disable_parallel_tool_use: bool | None = None


class ToolChoiceByName(Schema):
    """The model calls this tool."""

    type: Literal["tool"]
    name: ToolName
    disable_parallel_tool_use: bool | None = None


class NoChoice(Schema):
    """The model calls nothing."""

    type: Literal["none"]


MessagesToolChoice = Annotated[AutoChoice | AnyChoice | ToolChoiceByName | NoChoice, Field(discriminator="type")]


class ThinkingMode(Schema):
    """Whether to think; a budget cannot be kept, so there is none."""

    type: Literal["adaptive", "disabled"]
    display: Literal["summarized"] | None = Field(default=None, description="Thoughts are shown, and whole.")


class OutputFormat(Schema):
    """Output that satisfies a JSON schema."""

    type: Literal["json_schema"]
    schema_: JsonObject = Field(alias="schema")


class OutputConfig(Schema):
    """The form of the output, and how much to think."""

    format: OutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        default=None, description="Where the chat template knows of it."
    )


class MessagesMetadata(Schema):
    """Who asks."""

    user_id: Hint | None = Field(default=None, description="No effect.")


class CountTokensRequest(Schema):
    """The body of ``/v1/messages/count_tokens``."""

    model: str = Field(description="The model, or one of its adapters.")
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] = Field(
        description="The conversation; a last turn of the assistant is continued."
    )
    system: str | Annotated[list[TextBlock], Field(max_length=_MAX_BLOCKS, fail_fast=True)] | None = None
    tools: Annotated[list[MessagesTool], Field(max_length=_MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: MessagesToolChoice | None = Field(default=None, description="any and tool are enforced by a grammar.")
    thinking: ThinkingMode | None = Field(default=None, description="Where the chat template can switch it.")
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None


class MessagesRequest(CountTokensRequest):
    """The body of ``/v1/messages``."""

    max_tokens: Count = Field(description="At most so many tokens are generated.")
    stream: bool | None = Field(default=None, description="Send the message as events while it is generated.")
    stop_sequences: Annotated[list[StopString], Field(max_length=16, fail_fast=True)] | None = Field(
        default=None, description="Texts before which the output ends."
    )
    temperature: Annotated[float, Field(ge=0, le=1)] | None = Field(default=None, description="0 is greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    metadata: MessagesMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = Field(default=None, description="No effect.")


def parse_messages(body: dict[str, Any], lenient: bool) -> MessagesRequest:
    """Check the body of a message.

    Raises:
        ApiError: a field is wrong, named by ``param``.
    """
    return parse(MessagesRequest, body, NEUTRAL, lenient)


def parse_count(body: dict[str, Any], lenient: bool) -> CountTokensRequest:
    """Check the body of a count of tokens.

    Raises:
        ApiError: a field is wrong, named by ``param``.
    """
    return parse(CountTokensRequest, body, NEUTRAL, lenient)
