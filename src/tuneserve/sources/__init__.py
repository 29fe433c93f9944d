"""A source name becomes resolved, checked local files."""

from tuneserve.sources._cache import cache_directory, locked
from tuneserve.sources._gguf_tokenizer import adds_bos
from tuneserve.sources._precision import BasePrecision
from tuneserve.sources._resolve import ResolvedSource, read_config, resolve
from tuneserve.sources._text_files import tokenizer_files
from tuneserve.sources._weights import open_files, open_model

__all__ = [
    "BasePrecision",
    "ResolvedSource",
    "adds_bos",
    "cache_directory",
    "locked",
    "open_files",
    "open_model",
    "read_config",
    "resolve",
    "tokenizer_files",
]
