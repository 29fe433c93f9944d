"""Typed, bounded reads from a configuration that may hold anything."""

from collections.abc import Mapping
from typing import Any, TypeVar

from tuneserve.errors import SpecError, UnsupportedModelError

_MAX_SIZE = 1 << 24
_REQUIRED = object()
_Choice = TypeVar("_Choice")


class Fields:
    """A configuration whose fields are checked as they are read; ``where`` names it in errors."""

    def __init__(self, config: Mapping[str, Any], where: str = "config.json") -> None:
        self._config = config
        self._where = where

    def size(self, name: str, default: Any = _REQUIRED, *, least: int = 1, most: int = _MAX_SIZE) -> int:
        """Read a count."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._bad(name, value, f"a whole number from {least} to {most}")
        return value

    def optional_size(self, name: str, default: int | None) -> int | None:
        """Read a positive count, or null; ``default`` is only for a field that is absent."""
        absent = default is None and name not in self._config
        return None if self.is_null(name) or absent else self.size(name, default)

    def optional_number(self, name: str, default: float | None) -> float | None:
        """Read a positive number, or null; ``default`` is only for a field that is absent."""
        absent = default is None and name not in self._config
        return None if self.is_null(name) or absent else self.number(name, default)

    def is_null(self, name: str) -> bool:
        """Say whether a field is there and null."""
        return name in self._config and self._config[name] is None

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        """Read a positive, finite number."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e30:
            raise self._bad(name, value, "a positive number")
        return float(value)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """Read a list of ``count`` positive, finite numbers."""
        values = self._get(name, _REQUIRED)
        if not isinstance(values, list) or len(values) != count:
            raise self._bad(name, values, f"a list of {count} numbers")
        return tuple(Fields({name: value}, self._where).number(name) for value in values)

    def texts(self, name: str, count: int) -> list[str] | None:
        """Read a list of ``count`` strings; None where it is absent or null."""
        values = self._config.get(name)
        if values is None:
            return None
        if not isinstance(values, list) or len(values) != count or not all(isinstance(value, str) for value in values):
            raise self._bad(name, values, f"a list of {count} strings")
        return values

    def bits(self, name: str, count: int) -> list[bool] | None:
        """Read a list of ``count`` zeros and ones; None where it is absent or null."""
        values = self._config.get(name)
        if values is None:
            return None
        if not isinstance(values, list) or len(values) != count or not all(value in (0, 1) for value in values):
            raise self._bad(name, values, f"a list of {count} zeros and ones")
        return [bool(value) for value in values]

    def indices(self, name: str, below: int) -> set[int]:
        """Read a list of different whole numbers from 0; none where it is absent or null."""
        values = self._get(name, [])
        if not isinstance(values, list) or len(values) > below or not all(type(value) is int for value in values):
            raise self._bad(name, values, f"a list of whole numbers below {below}")
        return set(values)

    def choice(self, name: str, known: Mapping[str, _Choice], default: str) -> _Choice:
        """Read a string that must be a key of ``known``; return what it stands for."""
        value = self.text(name, default)
        if value not in known:
            raise self._unsupported(name, value, f"{' or '.join(map(repr, known))}, all that the native engine has")
        return known[value]

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
            raise self._unsupported(name, value, f"{listed}, the only one that the native engine has")

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

    def with_field(self, name: str, value: Any) -> "Fields":
        """Return the same configuration with one field set."""
        return Fields({**self._config, name: value}, self._where)

    def _get(self, name: str, default: Any) -> Any:
        value = self._config.get(name)
        if value is None:
            if default is _REQUIRED:
                raise SpecError(f"{self._where} lacks {name}; download or save the model again.")
            return default
        return value

    def _bad(self, name: str, value: Any, expected: str) -> SpecError:
        return SpecError(self._sentence(name, value, expected))

    def _unsupported(self, name: str, value: Any, expected: str) -> UnsupportedModelError:
        return UnsupportedModelError(self._sentence(name, value, expected))

    def _sentence(self, name: str, value: Any, expected: str) -> str:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
        return f"{name} in {self._where} is {shown}, which should be {expected}; use another model or engine."
