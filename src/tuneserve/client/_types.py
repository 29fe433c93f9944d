"""What an OpenAI-compatible server answers (https://platform.openai.com/docs/api-reference).

Fields that the API requires are required here; further ones are ignored, for servers add their own.
"""

from typing import Annotated, Literal

import msgspec


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of ``/v1/models``."""

    id: str
    object: Literal["model"]


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """A function's name and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call the model wants made."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The answer's message."""

    role: str
    content: str | None = None
    tool_calls: list[ToolCall] | None = None


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A token and the natural logarithm of its probability."""

    token: str
    logprob: float
    top_logprobs: list["TokenLogprob"] = []


class ChatLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """One entry per token of the message."""

    content: list[TokenLogprob] | None = None


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One of the answers asked for."""

    index: int
    message: ChatMessage
    finish_reason: str
    logprobs: ChatLogprobs | None = None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``/v1/chat/completions`` in one piece."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: Annotated[list[ChatChoice], msgspec.Meta(min_length=1)]
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """The content of the first choice."""
        return self.choices[0].message.content or ""


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """What a chunk adds to the message."""

    role: str | None = None
    content: str | None = None


class ChatChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of one of the answers; the last one of each has the finish reason."""

    index: int
    delta: Delta
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed chat completion; the one with the usage has no choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One of the continuations, whole or in pieces."""

    index: int
    text: str
    finish_reason: str | None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``/v1/completions`` in one piece."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: Annotated[list[CompletionChoice], msgspec.Meta(min_length=1)]
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text


class CompletionChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed completion; the one with the usage has no choices."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
