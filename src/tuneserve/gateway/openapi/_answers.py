"""What is answered, as schemas: for the document alone, and for the tests that hold answers against it."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_Json = dict[str, Any]


class Answer(BaseModel):
    """An object in an answer."""

    model_config = ConfigDict(extra="forbid")


class ErrorObject(Answer):
    """What went wrong."""

    message: str = Field(description="One sentence: what is wrong, and what to do.")
    type: Literal["invalid_request_error", "server_error"]
    param: str | None = Field(description="The field that is wrong, like messages[0].content.")
    code: str | None


class Error(Answer):
    """An error in OpenAI's form."""

    error: ErrorObject


class MessagesErrorObject(Answer):
    """What went wrong."""

    type: str
    message: str = Field(description="One sentence: what is wrong, and what to do.")


class MessagesError(Answer):
    """An error in Anthropic's form."""

    type: Literal["error"]
    error: MessagesErrorObject
    request_id: str | None


class CompletionDetails(Answer):
    """What generated tokens were for."""

    reasoning_tokens: int


class Usage(Answer):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionDetails


class TopLogprob(Answer):
    """A token and the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the output."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    """One entry per token."""

    content: list[TokenLogprob]
    refusal: None


class CalledFunction(Answer):
    """A function's name, and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(Answer):
    """A call that the model wants made."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(Answer):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = Field(default=None, description="What it thought before.")
    tool_calls: list[ToolCall] | None = None


Reason = Literal["stop", "length", "tool_calls"]


class ChatChoice(Answer):
    """One sample."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Reason


class ChatCompletion(Answer):
    """The answer of ``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    service_tier: str | None = None
    usage: Usage


class DeltaFunction(Answer):
    """A function's name, or more of its arguments."""

    name: str | None = None
    arguments: str


class DeltaToolCall(Answer):
    """More of a call."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: DeltaFunction


class Delta(Answer):
    """More of a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[DeltaToolCall] | None = None


class ChunkChoice(Answer):
    """More of one sample."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Reason | None


class ChatChunk(Answer):
    """One event of a streamed chat completion; the last before ``[DONE]`` has the usage, where asked for."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    service_tier: str | None = None
    usage: Usage | None


class CompletionLogprobs(Answer):
    """One entry per token in each list."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Answer):
    """One sample, whole or more of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(Answer):
    """The answer of ``/v1/completions``, and each event of a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None


class ResponseObject(BaseModel):
    """A response; its fields are OpenAI's."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: _Json | None
    incomplete_details: _Json | None
    model: str
    output: list[_Json] = Field(description="Items: reasoning, message, function_call.")
    previous_response_id: str | None
    store: bool
    usage: _Json | None = None


class DeletedResponse(Answer):
    """A response that is gone."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class AnthropicMessage(Answer):
    """The answer of ``/v1/messages``."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[_Json] = Field(description="Blocks: thinking, text, tool_use.")
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    stop_details: None
    container: None
    usage: _Json


class TokenCount(Answer):
    """How many tokens a prompt has."""

    input_tokens: int


class Embedding(Answer):
    """One vector, of unit length."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Answer):
    """Counts of tokens."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(Answer):
    """The answer of ``/v1/embeddings``."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Tokens(Answer):
    """The answer of ``/tokenize``."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(Answer):
    """The answer of ``/detokenize``."""

    prompt: str


class Model(Answer):
    """A model, or an adapter of one, its ``parent``."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    parent: str | None = None


class Models(Answer):
    """The answer of ``/v1/models``."""

    object: Literal["list"]
    data: list[Model]


class Status(Answer):
    """Where the server is in its life."""

    status: Literal["starting", "ready", "draining", "failed"]


class Version(Answer):
    """What runs."""

    name: str
    version: str
    engine: _Json | None
