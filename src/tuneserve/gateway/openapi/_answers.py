"""What is answered, as schemas: for the document alone, and for the tests that hold answers against it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


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


class PromptDetails(Answer):
    """What of a prompt the engine had computed before."""

    cached_tokens: int


class Usage(Answer):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None
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


class PromptLogprob(Answer):
    """A token at its place in a prompt."""

    logprob: float
    rank: int | None = Field(description="1 for the likeliest; null for a token that is none of those asked for.")
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class ChatChoice(Answer):
    """One sample."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Reason
    token_ids: list[int] | None = Field(default=None, description="Only with return_token_ids.")


class ChatCompletion(Answer):
    """The answer of ``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    service_tier: str | None = None
    usage: Usage
    prompt_token_ids: list[int] | None = Field(default=None, description="Only with return_token_ids.")
    prompt_logprobs: PromptLogprobs | None = Field(
        default=None, description="By token id, for each token of the prompt; null for the first."
    )


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
    token_ids: list[int] | None = Field(default=None, description="Only with return_token_ids.")


class ChatChunk(Answer):
    """One event of a streamed chat completion; the last before ``[DONE]`` has the usage, where asked for."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    service_tier: str | None = None
    usage: Usage | None
    prompt_token_ids: list[int] | None = Field(
        default=None, description="Only with return_token_ids, in the first event of a sample."
    )


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
    token_ids: list[int] | None = Field(default=None, description="Only with return_token_ids.")
    prompt_token_ids: list[int] | None = Field(
        default=None, description="Only with return_token_ids, in the first event of a sample."
    )
    prompt_logprobs: PromptLogprobs | None = Field(
        default=None, description="By token id, for each token of the prompt; null for the first."
    )


class Completion(Answer):
    """The answer of ``/v1/completions``, and each event of a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None
