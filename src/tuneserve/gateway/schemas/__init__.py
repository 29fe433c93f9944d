"""What requests may say: every field here is honoured, or refused where the engine or the model cannot."""

from tuneserve.gateway.schemas._base import Schema, parse
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
    parse_chat,
)
from tuneserve.gateway.schemas._completion import CompletionRequest, parse_completion
from tuneserve.gateway.schemas._generation import Generation, JsonSchemaFormat, JsonSchemaResponse, Sampling

__all__ = [
    "ChatPrompt",
    "ChatRequest",
    "CompletionRequest",
    "Function",
    "FunctionCall",
    "FunctionName",
    "Generation",
    "JsonSchemaFormat",
    "JsonSchemaResponse",
    "Message",
    "MessageToolCall",
    "NamedTool",
    "Sampling",
    "Schema",
    "Tool",
    "parse",
    "parse_chat",
    "parse_completion",
]
