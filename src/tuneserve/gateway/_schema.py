"""What a request may say. Every field here is honoured; those of OpenAI's that are not are in ``_fields``."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tuneserve.gateway import _fields
from tuneserve.gateway._errors import ApiError
from tuneserve.gateway._explain import explain

_MAX_COUNT = 2**31 - 1
_MAX_MESSAGES = 10_000
_MAX_PROMPTS = 128
_MAX_DEPTH = 32
_MAX_PAIRS = 64
_OURS = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")

_Count = Annotated[int, Field(ge=1, le=_MAX_COUNT)]
_TokenId = Annotated[int, Field(ge=0, le=_MAX_COUNT)]
_TokenIds = Annotated[list[_TokenId], Field(fail_fast=True)]
_Hint = Annotated[str, Field(max_length=1024)]
_StopString = Annotated[str, Field(min_length=1, max_length=256)]


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _prompts(value: object) -> object:
    single = isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int))
    return [value] if single else value


def _few_pairs(value: object) -> object:
    if isinstance(value, dict) and len(value) > _MAX_PAIRS:
        raise ValueError(f"it has more than {_MAX_PAIRS} keys")
    return value


def _template_kwargs(value: dict[str, Any]) -> dict[str, Any]:
    taken = [name for name in _OURS if name in value]
    if taken:
        raise ValueError(f"it sets {taken[0]!r}, which is a parameter of its own")
    level: list[object] = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")
    return value


class _Schema(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class StreamOptions(_Schema):
    """What a stream carries beside its text."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Generation(_Schema):
    """What chat and plain completions share. Null means absent; ranges of sampling values are the engine contract's."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: _Count | None = None
    min_tokens: Annotated[int, Field(ge=0, le=_MAX_COUNT)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=-1, le=_MAX_COUNT)] | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Annotated[list[_StopString], Field(max_length=16, fail_fast=True), BeforeValidator(_one_or_many)] | None = (
        None
    )
    stop_token_ids: Annotated[list[_TokenId], Field(max_length=64, fail_fast=True)] | None = None
    user: _Hint | None = None


class TextPart(_Schema):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(_Schema):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(max_length=_MAX_MESSAGES, fail_fast=True)]
    name: _Hint | None = None
    tool_call_id: _Hint | None = None

    @property
    def text(self) -> str:
        """The content, its parts on lines of their own."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class ChatRequest(Generation):
    """The body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=_MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: _Count | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(_template_kwargs)] | None = None
    metadata: Annotated[dict[str, str], BeforeValidator(_few_pairs)] | None = None
    prompt_cache_key: _Hint | None = None
    prompt_cache_retention: _Hint | None = None
    safety_identifier: _Hint | None = None


class CompletionRequest(Generation):
    """The body of ``/v1/completions``; ``prompt`` is a list of texts or of token-id lists."""

    prompt: Annotated[
        Annotated[list[str], Field(fail_fast=True)] | Annotated[list[_TokenIds], Field(fail_fast=True)],
        Field(min_length=1, max_length=_MAX_PROMPTS),
        BeforeValidator(_prompts),
    ]


_Request = TypeVar("_Request", bound=Generation)


def parse_chat(body: dict[str, Any]) -> ChatRequest:
    """Check the body of a chat completion.

    Raises:
        ApiError: a field is wrong, named by ``param``.
    """
    messages = body.get("messages")
    if isinstance(messages, list) and len(messages) <= _MAX_MESSAGES:
        known = Message.model_fields
        messages = [
            _fields.drop_neutral(message, known, _fields.MESSAGE, f"messages[{index}].")
            if isinstance(message, dict)
            else message
            for index, message in enumerate(messages)
        ]
        body = {**body, "messages": messages}
    request = _parse(ChatRequest, body, _fields.CHAT)
    tokens, other = request.max_tokens, request.max_completion_tokens
    if tokens is not None and other is not None and tokens != other:
        message = "'max_tokens' and 'max_completion_tokens' differ; send one of them."
        raise ApiError(400, message, param="max_tokens", code="invalid_value")
    return request


def parse_completion(body: dict[str, Any]) -> CompletionRequest:
    """Check the body of a plain completion.

    Raises:
        ApiError: a field is wrong, named by ``param``.
    """
    return _parse(CompletionRequest, body, _fields.COMPLETION)


def _parse(schema: type[_Request], body: dict[str, Any], neutral: _fields.Neutral) -> _Request:
    fields = _fields.drop_neutral(body, schema.model_fields, neutral)
    try:
        request = schema.model_validate(fields)
    except ValidationError as error:
        raise explain(error, fields) from None
    if request.stream_options is not None and not request.stream:
        message = "'stream_options' is only allowed with 'stream': true; send both or neither."
        raise ApiError(400, message, param="stream_options", code="invalid_value")
    return request
