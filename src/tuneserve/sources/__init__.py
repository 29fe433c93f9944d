"""A source name becomes resolved, checked local files."""

from tuneserve.sources._cache import cache_directory
from tuneserve.sources._gguf_tokenizer import adds_bos
from tuneserve.sources._resolve import ResolvedSource, read_config, resolve
from tuneserve.sources._weights import open_model

__all__ = ["ResolvedSource", "adds_bos", "cache_directory", "open_model", "read_config", "resolve"]
