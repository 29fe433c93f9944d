"""What is answered by other routes than chat and plain completions, as schemas."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tuneserve.gateway.openapi._answers import Answer

_Json = dict[str, Any]


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


class DescribedModel(Model):
    """A model with its engine and how it came to be: its base, its adapters, what was made of them, the engine."""

    ready: bool
    engine: _Json
    lineage: list[_Json]


class DescribedModels(Answer):
    """The answer of ``/v1/tuneserve/models``."""

    object: Literal["list"]
    data: list[DescribedModel]


class Status(Answer):
    """Where the server is in its life."""

    status: Literal["starting", "ready", "draining", "failed"]


class Version(Answer):
    """What runs: tuneserve, and the engine of each model by the model's name."""

    name: str
    version: str
    engines: dict[str, _Json]
