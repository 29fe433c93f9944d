"""Typed, bounded reads from a configuration that may hold anything."""

from collections.abc import Mapping
from typing import Any

from tuneserve.errors import SpecError

_MAX_SIZE = 1 << 24
_REQUIRED = object()


class Fields:
    """A configuration whose fields are checked as they are read; ``where`` names it in errors."""

    def __init__(self, config: Mapping[str, Any], where: str = "config.json") -> None:
        self._config = config
        self._where = where

    def size(self, name: str, default: Any = _REQUIRED) -> int:
        """Read a positive count."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_SIZE:
            raise self._bad(name, value, f"a whole number from 1 to {_MAX_SIZE}")
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        """Read a positive, finite number."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e30:
            raise self._bad(name, value, "a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Read true or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._bad(name, value, "true or false")
        return value

    def require(self, name: str, supported: tuple[Any, ...], default: Any) -> None:
        """Check that a field has one of the values that the decoder implements."""
        value = self._get(name, default)
        if not any(value is known or (type(value) is type(known) and value == known) for known in supported):
            listed = " or ".join(repr(known) for known in supported)
            raise self._bad(name, value, f"{listed}, the only one that the native engine has")

    def section(self, name: str) -> "Fields | None":
        """Read a nested object; None where it is absent or null."""
        value = self._config.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._bad(name, value, "an object")
        return Fields(value, f"{name} in {self._where}")

    def text(self, name: str, default: Any = _REQUIRED) -> str:
        """Read a string."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._bad(name, value, "a string")
        return value

    def names(self) -> set[str]:
        """Return the names of the fields that are not null."""
        return {name for name, value in self._config.items() if value is not None}

    def _get(self, name: str, default: Any) -> Any:
        value = self._config.get(name)
        if value is None:
            if default is _REQUIRED:
                raise SpecError(f"{self._where} lacks {name}; download or save the model again.")
            return default
        return value

    def _bad(self, name: str, value: Any, expected: str) -> SpecError:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
        return SpecError(
            f"{name} in {self._where} is {shown}, which should be {expected}; use another model or engine."
        )
