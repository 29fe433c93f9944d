"""What requests may say: every field here is honoured, or refused where the engine or the model cannot."""

from tuneserve.gateway.schemas._base import JsonObject, Schema, parse
from tuneserve.gateway.schemas._chat import (
    ChatPrompt,
    ChatRequest,
    Function,
    FunctionCall,
    FunctionName,
    Message,
    MessageToolCall,
    NamedTool,
    Tool,
    ToolName,
    check_chat,
    parse_chat,
)
from tuneserve.gateway.schemas._completion import CompletionRequest, parse_completion
from tuneserve.gateway.schemas._generation import Generation, JsonSchemaFormat, JsonSchemaResponse, Sampling
from tuneserve.gateway.schemas._others import (
    DetokenizeRequest,
    EmbeddingRequest,
    LoadAdapterRequest,
    TokenizeChatRequest,
    TokenizeTextRequest,
    UnloadAdapterRequest,
    parse_embedding,
    parse_tokenize,
)

__all__ = [
    "ChatPrompt",
    "ChatRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "EmbeddingRequest",
    "Function",
    "FunctionCall",
    "FunctionName",
    "Generation",
    "JsonObject",
    "JsonSchemaFormat",
    "JsonSchemaResponse",
    "LoadAdapterRequest",
    "Message",
    "MessageToolCall",
    "NamedTool",
    "Sampling",
    "Schema",
    "TokenizeChatRequest",
    "TokenizeTextRequest",
    "Tool",
    "ToolName",
    "UnloadAdapterRequest",
    "check_chat",
    "parse",
    "parse_chat",
    "parse_completion",
    "parse_embedding",
    "parse_tokenize",
]
