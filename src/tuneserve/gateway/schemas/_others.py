"""The bodies of the routes that generate nothing."""

from typing import Annotated, Any, Literal

from pydantic import Field

from tuneserve.gateway.schemas import _neutral
from tuneserve.gateway.schemas._base import Hint, Schema, TokenId, parse
from tuneserve.gateway.schemas._chat import ChatPrompt, check_messages, neutral_messages
from tuneserve.gateway.schemas._completion import Prompts

_MAX_TOKENS = 1_000_000
AdapterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
AdapterPath = Annotated[str, Field(min_length=1, max_length=4096)]


class EmbeddingRequest(Schema):
    """The body of ``/v1/embeddings``."""

    model: str = Field(description="The model, or one of its adapters.")
    input: Prompts = Field(description="A text, token ids, or a list of either.")
    encoding_format: Literal["float", "base64"] | None = Field(
        default=None, description="base64 is of little-endian 32-bit floats; float."
    )
    pooling: Literal["last", "mean"] | None = Field(
        default=None, description="Which hidden states make the vector: the last token's, or the mean of all; last."
    )
    user: Hint | None = Field(default=None, description="No effect.")


class TokenizeTextRequest(Schema):
    """The body of ``/tokenize`` for a text."""

    model: str | None = Field(default=None, description="The model, or one of its adapters; the model.")
    prompt: str
    add_special_tokens: bool | None = Field(default=None, description="Add what begins a text, like BOS; true.")
    return_token_strs: bool | None = Field(default=None, description="Return the tokens as texts too.")


class TokenizeChatRequest(ChatPrompt):
    """The body of ``/tokenize`` for a conversation."""

    model: str | None = Field(default=None, description="The model, or one of its adapters; the model.")
    return_token_strs: bool | None = Field(default=None, description="Return the tokens as texts too.")


class DetokenizeRequest(Schema):
    """The body of ``/detokenize``."""

    model: str | None = Field(default=None, description="The model, or one of its adapters; the model.")
    tokens: Annotated[list[TokenId], Field(max_length=_MAX_TOKENS, fail_fast=True)]


class LoadAdapterRequest(Schema):
    """The body of ``/v1/load_lora_adapter``."""

    lora_name: AdapterName = Field(description="What requests will call it.")
    lora_path: AdapterPath = Field(description="Its directory on the server, within one allowed at the start.")
    base_model_name: str | None = Field(
        default=None, description="The model that it is over; needed where the server has several."
    )


class UnloadAdapterRequest(Schema):
    """The body of ``/v1/unload_lora_adapter``."""

    lora_name: AdapterName = Field(description="What requests call it.")


def parse_embedding(body: dict[str, Any], lenient: bool = False) -> EmbeddingRequest:
    """Check the body of a request for embeddings.

    Raises:
        ApiError: a field is wrong, named by ``param``.
    """
    return parse(EmbeddingRequest, body, _neutral.EMBEDDING, lenient)


def parse_tokenize(body: dict[str, Any], lenient: bool = False) -> TokenizeTextRequest | TokenizeChatRequest:
    """Check the body of ``/tokenize``; with ``messages`` it is a conversation.

    Raises:
        ApiError: a field is wrong, named by ``param``.
    """
    if "messages" not in body:
        return parse(TokenizeTextRequest, body, {}, lenient)
    request = parse(TokenizeChatRequest, {**body, **neutral_messages(body, lenient)}, {}, lenient)
    check_messages(request)
    return request
