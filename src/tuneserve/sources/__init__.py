"""A source name becomes resolved, checked local files."""

from tuneserve.sources._resolve import ResolvedSource, resolve

__all__ = ["ResolvedSource", "resolve"]
