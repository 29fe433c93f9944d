"""A source name becomes resolved, checked local files."""

from tuneserve.sources._cache import cache_directory, locked
from tuneserve.sources._resolve import ResolvedSource, read_config, resolve

__all__ = ["ResolvedSource", "cache_directory", "locked", "read_config", "resolve"]
