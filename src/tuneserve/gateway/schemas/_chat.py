"""The body of ``/v1/chat/completions``."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from tuneserve.gateway._errors import ApiError
from tuneserve.gateway.schemas import _neutral
from tuneserve.gateway.schemas._base import (
    MAX_MESSAGES,
    PARSED,
    Count,
    Effort,
    Hint,
    JsonObject,
    Metadata,
    PromptCacheBreakpoint,
    PromptCacheOptions,
    Schema,
    TokenId,
    parse,
    shallow,
)
from tuneserve.gateway.schemas._generation import MAX_TOP_LOGPROBS, Generation, check_generation

_MAX_TOOLS = 128
_MAX_CALLS = 256
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]


class TextPart(Schema):
    """A part of a message."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: PromptCacheBreakpoint | None = Field(default=None, description="No effect.")


class FunctionCall(Schema):
    """A function's name, and its arguments as JSON text."""

    name: ToolName
    arguments: str
    parsed_arguments: Any = Field(default=None, description=PARSED)


class MessageToolCall(Schema):
    """A call that the assistant made."""

    id: Hint
    type: Literal["function"] = "function"
    function: FunctionCall
    index: TokenId | None = Field(default=None, description="No effect: calls are in their order.")

    def for_template(self) -> dict[str, Any]:
        """Return it as chat templates read it."""
        return self.model_dump(exclude={"index": True, "function": {"parsed_arguments"}})


class Message(Schema):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(max_length=MAX_MESSAGES, fail_fast=True)] | None = Field(
        default=None, description="Only a message with tool_calls goes without."
    )
    name: Hint | None = Field(default=None, description="Handed to the chat template.")
    tool_call_id: Hint | None = Field(default=None, description="Which call a message of the role tool answers.")
    tool_calls: Annotated[list[MessageToolCall], Field(max_length=_MAX_CALLS, fail_fast=True)] | None = None
    reasoning_content: str | None = Field(
        default=None, description="What the assistant thought; handed to the chat template."
    )
    parsed: Any = Field(default=None, description=PARSED)

    @property
    def text(self) -> str:
        """The content, its parts on lines of their own."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class Function(Schema):
    """What the model may call."""

    name: ToolName
    description: Annotated[str, Field(max_length=65536)] | None = None
    parameters: JsonObject | None = Field(default=None, description="A JSON schema of the arguments.")
    strict: bool | None = Field(
        default=None, description="Arguments satisfy the schema whenever tool_choice is required or names a function."
    )


class Tool(Schema):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class FunctionName(Schema):
    """A function by its name."""

    name: ToolName


class NamedTool(Schema):
    """The one function to call."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(Schema):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=_MAX_TOOLS, fail_fast=True)]


class AllowedToolsChoice(Schema):
    """Only some of the tools; the model does not see the others."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = (
    Literal["none", "auto", "required"] | Annotated[NamedTool | AllowedToolsChoice, Field(discriminator="type")]
)


class ChatPrompt(Schema):
    """A conversation, and how it becomes text."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    tools: Annotated[list[Tool], Field(max_length=_MAX_TOOLS, fail_fast=True)] | None = Field(
        default=None, description="Functions that the model may call."
    )
    add_generation_prompt: bool | None = Field(
        default=None, description="End the prompt with the beginning of an answer."
    )
    continue_final_message: bool | None = Field(
        default=None, description="Continue the last message instead of answering it."
    )
    add_special_tokens: bool | None = Field(
        default=None, description="Add what begins a text, like BOS, to what the chat template writes; false."
    )
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(shallow)] | None = Field(
        default=None, description="Variables of the chat template; only those that it reads."
    )


class ChatRequest(Generation, ChatPrompt):
    """The body of ``/v1/chat/completions``."""

    max_completion_tokens: Count | None = Field(default=None, description="The same as max_tokens.")
    logprobs: bool | None = Field(default=None, description="Tell the log-probability of each token.")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        default=None, description="Tell those of so many of the likeliest tokens too; only with logprobs."
    )
    tool_choice: ToolChoice | None = Field(
        default=None, description="auto unless said otherwise; required and a named function are enforced by a grammar."
    )
    parallel_tool_calls: bool | None = Field(
        default=None, description="Whether there may be several calls at once; true."
    )
    reasoning_effort: Effort | None = Field(
        default=None, description="How much to think, where the chat template knows of it."
    )
    include_reasoning: bool | None = Field(
        default=None, description="Whether the answer tells what the model thought; true. It thinks either way."
    )
    metadata: Metadata | None = Field(default=None, description="No effect.")
    prompt_cache_key: Hint | None = Field(
        default=None, description="No effect: equal beginnings of prompts are shared anyway."
    )
    prompt_cache_options: PromptCacheOptions | None = Field(default=None, description="No effect.")
    prompt_cache_retention: Hint | None = Field(default=None, description="No effect.")
    safety_identifier: Hint | None = Field(default=None, description="No effect.")

    @property
    def offered_tools(self) -> list[Tool]:
        """The tools that the model sees."""
        tools, choice = self.tools or [], self.tool_choice
        if isinstance(choice, AllowedToolsChoice):
            allowed = {tool.function.name for tool in choice.allowed_tools.tools}
            return [tool for tool in tools if tool.function.name in allowed]
        return [] if choice == "none" else tools


def parse_chat(body: dict[str, Any], lenient: bool = False) -> ChatRequest:
    """Check the body of a chat completion.

    Raises:
        ApiError: a field is wrong, named by ``param``.
    """
    request = parse(ChatRequest, {**body, **neutral_messages(body, lenient)}, _neutral.CHAT, lenient)
    check_chat(request)
    return request


def check_chat(request: ChatRequest) -> None:
    """Raise ApiError where fields contradict each other."""
    tokens, other = request.max_tokens, request.max_completion_tokens
    if tokens is not None and other is not None and tokens != other:
        message = "'max_tokens' and 'max_completion_tokens' differ; send one of them."
        raise ApiError(400, message, param="max_tokens", code="invalid_value")
    check_generation(request)
    check_messages(request)
    if request.top_logprobs and not request.logprobs:
        message = "'top_logprobs' is only allowed with 'logprobs': true; send both or neither."
        raise ApiError(400, message, param="top_logprobs", code="invalid_value")
    _check_tool_choice(request)


def neutral_messages(body: dict[str, Any], lenient: bool) -> dict[str, Any]:
    """Return ``messages`` of ``body`` without their fields that say nothing, in a dict that is else empty."""
    messages = body.get("messages")
    if not isinstance(messages, list) or len(messages) > MAX_MESSAGES:
        return {}
    known = Message.model_fields
    return {
        "messages": [
            _neutral.drop_neutral(message, known, _neutral.MESSAGE, f"messages[{index}].", lenient=lenient)
            if isinstance(message, dict)
            else message
            for index, message in enumerate(messages)
        ]
    }


def check_messages(request: ChatPrompt) -> None:
    """Raise ApiError where a message has nothing to say, or calls that its role cannot make."""
    for index, message in enumerate(request.messages):
        path = f"messages[{index}]"
        if message.tool_calls and message.role != "assistant":
            text = f"'{path}.tool_calls' is not for the role {message.role!r}; only the assistant calls tools."
            raise ApiError(400, text, param=f"{path}.tool_calls", code="invalid_value")
        if message.content is None and not message.tool_calls:
            text = f"Missing required parameter '{path}.content'; add it."
            raise ApiError(400, text, param=f"{path}.content", code="missing_required_parameter")
    names = [tool.function.name for tool in request.tools or ()]
    for index, name in enumerate(names):
        if name in names[:index]:
            text = f"Two of the 'tools' are called {name!r}; give each a name of its own."
            raise ApiError(400, text, param=f"tools[{index}].function.name", code="invalid_value")


def _check_tool_choice(request: ChatRequest) -> None:
    choice = request.tool_choice
    if choice in (None, "none", "auto"):
        return
    if not request.tools:
        message = "'tool_choice' asks for a call and there are no 'tools'; add some."
        raise ApiError(400, message, param="tool_choice", code="invalid_value")
    named = [choice] if isinstance(choice, NamedTool) else []
    named = choice.allowed_tools.tools if isinstance(choice, AllowedToolsChoice) else named
    for name in [each.function.name for each in named]:
        if name not in {tool.function.name for tool in request.tools}:
            message = f"'tool_choice' names {name!r}, which is none of the 'tools'; name one of them."
            raise ApiError(400, message, param="tool_choice", code="invalid_value")
