"""Items of a response as messages of ``/v1/chat/completions``."""

from collections.abc import Sequence
from typing import Any

from tuneserve.gateway._errors import ApiError
from tuneserve.gateway._parts import Sample
from tuneserve.gateway.responses._schema import (
    FunctionCallItem,
    FunctionCallOutput,
    InputMessage,
    InputText,
    ObjectFormat,
    ReasoningItem,
    ResponseAllowedTools,
    ResponsesRequest,
    ResponseToolName,
    SchemaFormat,
)
from tuneserve.gateway.schemas import (
    AllowedTools,
    AllowedToolsChoice,
    ChatRequest,
    Function,
    FunctionCall,
    FunctionName,
    Message,
    MessageToolCall,
    NamedTool,
    Tool,
    check_chat,
)

# What errors call a field, and what it is called here.
RENAMED = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "tools[*].function": "tools[*]",
}


def as_messages(body: ResponsesRequest) -> list[Message]:
    """Return the input as messages; the assistant's thoughts, words and calls in a row are one message."""
    if isinstance(body.input, str):
        return [Message(role="user", content=body.input)]
    turns = _Turns()
    for item in body.input:
        turns.add(item)
    return turns.messages


class _Turns:
    """The messages so far; the last of them may still get more of what the assistant did."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._is_open = False

    def add(self, item: InputMessage | FunctionCallItem | FunctionCallOutput | ReasoningItem) -> None:
        match item:
            case ReasoningItem():
                thought = "\n".join(part.text for part in item.content or ())
                self._start(Message(role="assistant", content="", reasoning_content=thought or None), is_open=True)
            case InputMessage(role="assistant"):
                last = self.messages[-1] if self._is_open else None
                if last is not None and not last.content and not last.tool_calls:
                    self._extend(content=_text(item.content))
                else:
                    self._start(Message(role="assistant", content=_text(item.content)), is_open=True)
            case InputMessage():
                self._start(Message(role=item.role, content=_text(item.content)), is_open=False)
            case FunctionCallItem():
                if not self._is_open:
                    self._start(Message(role="assistant", content=""), is_open=True)
                function = FunctionCall(name=item.name, arguments=item.arguments)
                call = MessageToolCall(id=item.call_id, function=function)
                self._extend(tool_calls=[*(self.messages[-1].tool_calls or ()), call])
            case FunctionCallOutput():
                result = Message(role="tool", content=_text(item.output), tool_call_id=item.call_id, name=item.name)
                self._start(result, is_open=False)

    def _start(self, message: Message, *, is_open: bool) -> None:
        self.messages.append(message)
        self._is_open = is_open

    def _extend(self, **update: object) -> None:
        self.messages[-1] = self.messages[-1].model_copy(update=update)


def as_chat(body: ResponsesRequest, messages: Sequence[Message]) -> ChatRequest:
    """Return ``body`` as a chat completion over ``messages``, before which its instructions come.

    Raises:
        ApiError: its fields contradict each other, named as they are here.
    """
    instructions = [Message(role="system", content=body.instructions)] if body.instructions else []
    choice: Any = body.tool_choice
    if isinstance(choice, ResponseToolName):
        choice = _named(choice)
    elif isinstance(choice, ResponseAllowedTools):
        allowed = AllowedTools(mode=choice.mode, tools=[_named(tool) for tool in choice.tools])
        choice = AllowedToolsChoice(type="allowed_tools", allowed_tools=allowed)
    chat = ChatRequest(
        model=body.model,
        messages=[*instructions, *messages],
        tools=[_tool(tool) for tool in body.tools] if body.tools else None,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls,
        stream=body.stream,
        max_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        response_format=_form(body),
        reasoning_effort=body.reasoning.effort if body.reasoning is not None else None,
        logprobs=bool(body.include),
        top_logprobs=body.top_logprobs,
        service_tier=body.service_tier,
    )
    try:
        check_chat(chat)
    except ApiError as error:
        raise error.renamed(RENAMED) from None
    return chat


def answered(sample: Sample) -> Message:
    """Return what was generated as a message of the conversation, without calls that cannot be gone on from."""
    calls = [
        MessageToolCall(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments))
        for call in sample.calls
        if call.decoded() is not None
    ]
    return Message(
        role="assistant",
        content=sample.text,
        tool_calls=calls or None,
        reasoning_content=sample.reasoning or None,
    )


def _text(content: str | Sequence[InputText]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _tool(tool: Any) -> Tool:
    function = Function(name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict)
    return Tool(type="function", function=function)


def _named(tool: ResponseToolName) -> NamedTool:
    return NamedTool(type="function", function=FunctionName(name=tool.name))


def _form(body: ResponsesRequest) -> Any:
    form = body.text.format if body.text is not None else None
    if isinstance(form, SchemaFormat):
        schema = {"name": form.name, "schema": form.schema_, "strict": form.strict}
        return {"type": "json_schema", "json_schema": schema}
    return {"type": "json_object"} if isinstance(form, ObjectFormat) else None
