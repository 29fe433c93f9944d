"""Every route of the API: what it takes and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel

from tuneserve.gateway.anthropic._schema import NEUTRAL as MESSAGES_NEUTRAL
from tuneserve.gateway.anthropic._schema import CountTokensRequest, MessagesRequest
from tuneserve.gateway.openapi import _answers as answers
from tuneserve.gateway.openapi import _other_answers as others
from tuneserve.gateway.responses._schema import NEUTRAL as RESPONSES_NEUTRAL
from tuneserve.gateway.responses._schema import ResponsesRequest
from tuneserve.gateway.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    LoadAdapterRequest,
    Message,
    TokenizeChatRequest,
    TokenizeTextRequest,
    UnloadAdapterRequest,
    _neutral,
)


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    ``takes`` are the schemas of the body, one of which it has. ``answers`` is the schema of an answer in JSON, or what
    is said of one in plain text. ``events`` is the schema of an event, where answers can be streamed. ``errors`` are
    statuses beside those that any request can have.
    """

    method: str
    path: str
    summary: str
    answers: type[BaseModel] | str
    takes: tuple[type[BaseModel], ...] = ()
    events: type[BaseModel] | str | None = None
    errors: tuple[int, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    is_anthropic: bool = False


# Fields that are only accepted with these values, which ask for nothing.
NEUTRAL: Mapping[type[BaseModel], _neutral.Neutral] = {
    ChatRequest: _neutral.CHAT,
    CompletionRequest: _neutral.COMPLETION,
    EmbeddingRequest: _neutral.EMBEDDING,
    Message: _neutral.MESSAGE,
    MessagesRequest: MESSAGES_NEUTRAL,
    CountTokensRequest: MESSAGES_NEUTRAL,
    ResponsesRequest: RESPONSES_NEUTRAL,
}

OPERATIONS = (
    Operation(
        "post", "/v1/chat/completions", "Answer a conversation.", answers.ChatCompletion, (ChatRequest,),
        answers.ChatChunk, (404,),
    ),
    Operation(
        "post", "/v1/completions", "Continue texts or token ids.", answers.Completion, (CompletionRequest,),
        answers.Completion, (404,),
    ),
    Operation(
        "post", "/v1/responses", "Answer, with items and a memory.", others.ResponseObject, (ResponsesRequest,),
        "Events of OpenAI's Responses API, numbered by sequence_number.", (404,),
    ),
    Operation(
        "get", "/v1/responses/{id}", "Read a stored response.", others.ResponseObject, errors=(404,),
        parameters={"id": "The response's id."},
    ),
    Operation(
        "delete", "/v1/responses/{id}", "Forget a stored response.", others.DeletedResponse, errors=(404,),
        parameters={"id": "The response's id."},
    ),
    Operation(
        "post", "/v1/embeddings", "Turn texts or token ids into vectors.", others.Embeddings, (EmbeddingRequest,),
        errors=(404,),
    ),
    Operation(
        "post", "/v1/messages", "Answer a conversation, in Anthropic's form.", others.AnthropicMessage,
        (MessagesRequest,), "Events of Anthropic's Messages API.", (404,), is_anthropic=True,
    ),
    Operation(
        "post", "/v1/messages/count_tokens", "Count the tokens of a conversation, in Anthropic's form.",
        others.TokenCount, (CountTokensRequest,), errors=(404,), is_anthropic=True,
    ),
    Operation("get", "/v1/models", "List the models and their adapters.", others.Models),
    Operation(
        "get", "/v1/models/{name}", "Read about one.", others.Model, errors=(404,),
        parameters={"name": "What /v1/models calls it."},
    ),
    Operation(
        "get", "/v1/tuneserve/models", "Read how each model came to be, and what runs it.", others.DescribedModels
    ),
    Operation(
        "post", "/tokenize", "Turn a text or a conversation into token ids.", others.Tokens,
        (TokenizeTextRequest, TokenizeChatRequest), errors=(404,),
    ),
    Operation(
        "post", "/detokenize", "Turn token ids into text.", others.Detokenized, (DetokenizeRequest,), errors=(404,)
    ),
    Operation(
        "post", "/v1/load_lora_adapter", "Serve one more adapter, from a directory allowed with --adapter-dir.",
        "That it is served.", (LoadAdapterRequest,),
    ),
    Operation(
        "post", "/v1/unload_lora_adapter", "Serve an adapter no longer.", "That it is gone.",
        (UnloadAdapterRequest,), errors=(404,),
    ),
    Operation("get", "/health", "Whether the server lives.", others.Status),
    Operation("get", "/ready", "Whether it takes requests.", others.Status),
    Operation("get", "/version", "What runs.", others.Version),
    Operation("get", "/metrics", "Counters for Prometheus.", "Prometheus' text format."),
)  # fmt: skip
