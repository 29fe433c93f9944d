"""A source name becomes resolved, checked local files."""

from tuneserve.sources._resolve import ResolvedSource, read_config, resolve

__all__ = ["ResolvedSource", "read_config", "resolve"]
