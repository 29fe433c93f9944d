"""Text on both sides of an engine: tokens, chat templates, incremental detokenising, stop strings."""

from tuneserve.text._backend import BackendError, guarded
from tuneserve.text._detokenizer import Detokenizer
from tuneserve.text._files import special_tokens
from tuneserve.text._meter import UnfinishedError
from tuneserve.text._stops import StopStrings
from tuneserve.text._template import ChatTemplate, compile_chat_template, open_chat_template
from tuneserve.text._token_bytes import TokenBytes, byte_alphabet
from tuneserve.text._tokenizer import Tokenizer, open_tokenizer

__all__ = [
    "BackendError",
    "ChatTemplate",
    "Detokenizer",
    "StopStrings",
    "TokenBytes",
    "Tokenizer",
    "UnfinishedError",
    "byte_alphabet",
    "compile_chat_template",
    "guarded",
    "open_chat_template",
    "open_tokenizer",
    "special_tokens",
]
