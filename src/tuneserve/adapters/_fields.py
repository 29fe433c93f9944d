"""Typed reads from an adapter configuration that may hold anything."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneserve.errors import AdapterError

CONFIG_FILE = "adapter_config.json"
_MAX_CONFIG_BYTES = 10_000_000
_MAX_RANK = 65_536
# For lists of which every entry is compared with every module; no model has as many kinds of modules.
MAX_KINDS = 1000


class MalformedError(Exception):
    """A field holds something that PEFT does not write."""


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """Read ``adapter_config.json`` in ``directory`` as it is.

    Raises:
        AdapterError: it is missing, too large, or not a JSON object.
    """
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise AdapterError(f"{path} is missing; point to the directory that training wrote.")
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise AdapterError(
            f"{path} is over {_MAX_CONFIG_BYTES} bytes, which no adapter configuration is; save it again."
        )
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise AdapterError(f"{path} is not a JSON object; save the adapter again.")
    return config


def read_rank(value: Any, name: str) -> int:
    """Check a rank."""
    if type(value) is not int or not 1 <= value <= _MAX_RANK:
        raise MalformedError(f"the rank {name[:100]}={str(value)[:50]} is not an integer from 1 to {_MAX_RANK}")
    return value


def read_number(value: Any, name: str) -> float:
    """Check a number that is to be multiplied with."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise MalformedError(f"{name[:100]}={str(value)[:50]} is not a number of a usable size")
    return float(value)


def read_flag(config: Mapping[str, Any], name: str) -> bool:
    """Read true or false; absent is false."""
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise MalformedError(f"{name} is neither true nor false")
    return bool(value)


def read_mapping(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Read an object; absent is empty."""
    value = config.get(name) or {}
    if not isinstance(value, dict):
        raise MalformedError(f"{name} is not an object")
    return value


def read_modules(config: Mapping[str, Any], name: str) -> str | tuple[str, ...] | None:
    """Read a regular expression or a list of names; empty is None."""
    value = config.get(name)
    return value or None if isinstance(value, str) else read_strings(value, name) or None


def read_strings(value: Any, name: str, most: int | None = None) -> tuple[str, ...]:
    """Check a string or a list of strings, of which there may be ``most``; absent is empty."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise MalformedError(f"{name} is not a list of strings")
    if most is not None and len(value) > most:
        raise MalformedError(f"{name} has {len(value)} entries, over {most}")
    return tuple(value)


def read_indices(value: Any, name: str) -> tuple[int, ...]:
    """Check a list of numbers from zero on."""
    if not isinstance(value, list) or not all(type(index) is int and 0 <= index < 2**31 for index in value):
        raise MalformedError(f"{name} is not a list of whole numbers")
    return tuple(value)
