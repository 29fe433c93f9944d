"""One typed client for servers that speak the OpenAI API.

::

    TuneserveError
    ├── ApiError          the server answered with an error
    ├── TransportError    there was no answer, or it broke off
    └── ProtocolError     the answer is not in the API's form
"""

from tuneserve.client._client import OpenAIClient
from tuneserve.client._errors import ApiError, ProtocolError, TransportError
from tuneserve.client._http import RawResponse
from tuneserve.client._sse import SseParser
from tuneserve.client._types import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    Completion,
    CompletionChoice,
    CompletionChunk,
    Delta,
    FunctionCall,
    Model,
    TokenLogprob,
    ToolCall,
    Usage,
)

__all__ = [
    "ApiError",
    "ChatChoice",
    "ChatChunk",
    "ChatChunkChoice",
    "ChatCompletion",
    "ChatLogprobs",
    "ChatMessage",
    "Completion",
    "CompletionChoice",
    "CompletionChunk",
    "Delta",
    "FunctionCall",
    "Model",
    "OpenAIClient",
    "ProtocolError",
    "RawResponse",
    "SseParser",
    "TokenLogprob",
    "ToolCall",
    "TransportError",
    "Usage",
]
