"""Anthropic's conversations as those of ``/v1/chat/completions``."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from tuneserve.gateway._errors import ApiError
from tuneserve.gateway.anthropic._schema import (
    CountTokensRequest,
    MessagesRequest,
    NoChoice,
    TextBlock,
    ThinkingBlock,
    ToolChoiceByName,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)
from tuneserve.gateway.schemas import (
    ChatRequest,
    Function,
    FunctionCall,
    FunctionName,
    JsonSchemaFormat,
    JsonSchemaResponse,
    Message,
    MessageToolCall,
    NamedTool,
    Tool,
    check_chat,
)

_CHOICES: dict[str, Any] = {"auto": "auto", "any": "required", "none": "none"}


def renamed(body: CountTokensRequest) -> dict[str, str]:
    """Return what errors call a field, and what it is called here."""
    by_effort = body.output_config is not None and body.output_config.effort is not None
    effort = "output_config.effort" if by_effort else "thinking"
    return {
        "stop": "stop_sequences",
        "response_format": "output_config.format",
        "reasoning_effort": effort,
        "tools[*].function.parameters": "tools[*].input_schema",
        "tools[*].function": "tools[*]",
    }


def as_chat(body: CountTokensRequest) -> ChatRequest:
    """Return ``body`` as a chat completion.

    Raises:
        ApiError: its messages or its choice of tools make no sense, named as they are here.
    """
    messages = [Message(role="system", content=_text(body.system))] if body.system else []
    names: dict[str, str] = {}
    for index, turn in enumerate(body.messages):
        messages += _messages(turn, f"messages[{index}]", names)
    options: dict[str, Any] = {}
    if isinstance(body, MessagesRequest):
        options = {
            "max_tokens": body.max_tokens,
            "stream": body.stream,
            "stop": body.stop_sequences,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
        }
    choice = body.tool_choice
    chat = ChatRequest(
        model=body.model,
        messages=messages,
        tools=[_tool(tool) for tool in body.tools] if body.tools else None,
        tool_choice=_choice(choice),
        parallel_tool_calls=not (
            choice is not None and not isinstance(choice, NoChoice) and choice.disable_parallel_tool_use
        ),
        continue_final_message=messages[-1].role == "assistant",
        response_format=_form(body),
        reasoning_effort=_effort(body),
        **options,
    )
    try:
        check_chat(chat)
    except ApiError as error:
        raise error.renamed(renamed(body)) from None
    return chat


def _messages(turn: Turn, path: str, names: dict[str, str]) -> Iterator[Message]:
    """Yield what one turn is: results of calls are messages of their own."""
    if isinstance(turn.content, str):
        yield Message(role=turn.role, content=turn.content)
        return
    texts, calls, thoughts = [], [], []
    for index, block in enumerate(turn.content):
        own = "user" if isinstance(block, ToolResultBlock) else "assistant"
        if not isinstance(block, TextBlock) and turn.role != own:
            where = f"{path}.content[{index}]"
            message = f"'{where}' is of the type {block.type!r}, which only the {own} can send."
            raise ApiError(400, message, param=where, code="invalid_value")
        match block:
            case TextBlock():
                texts.append(block.text)
            case ThinkingBlock():
                thoughts.append(block.thinking)
            case ToolUseBlock():
                names[block.id] = block.name
                arguments = msgspec.json.encode(block.input).decode()
                calls.append(MessageToolCall(id=block.id, function=FunctionCall(name=block.name, arguments=arguments)))
            case ToolResultBlock():
                content = _text(block.content)
                name = names.get(block.tool_use_id)
                yield Message(role="tool", content=content, tool_call_id=block.tool_use_id, name=name)
    if texts or calls or thoughts or not turn.content:
        yield Message(
            role=turn.role,
            content="\n".join(texts),
            tool_calls=calls or None,
            reasoning_content="\n".join(thoughts) if thoughts else None,
        )


def _text(content: str | Sequence[TextBlock] | None) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content or ())


def _tool(tool: Any) -> Tool:
    function = Function(name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict)
    return Tool(type="function", function=function)


def _choice(choice: Any) -> Any:
    if choice is None:
        return None
    if isinstance(choice, ToolChoiceByName):
        return NamedTool(type="function", function=FunctionName(name=choice.name))
    return _CHOICES[choice.type]


def _form(body: CountTokensRequest) -> JsonSchemaResponse | None:
    if body.output_config is None or body.output_config.format is None:
        return None
    schema = JsonSchemaFormat.model_validate({"name": "output", "schema": body.output_config.format.schema_})
    return JsonSchemaResponse(type="json_schema", json_schema=schema)


def _effort(body: CountTokensRequest) -> Any:
    if body.thinking is not None and body.thinking.type == "disabled":
        return "none"
    effort = body.output_config.effort if body.output_config is not None else None
    return effort or ("medium" if body.thinking is not None else None)
