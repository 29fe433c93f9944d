"""The JSON files around a tokenizer, any of which may be absent."""

import json
from pathlib import Path
from typing import Any

from tuneserve.errors import TextError

_MAX_BYTES = 20_000_000


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object, empty where there is no file.

    Raises:
        TextError: the file is huge, unreadable, or no JSON object.
    """
    try:
        if not path.exists():
            return {}
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("it is too large")
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError, RecursionError):
        raise TextError(f"{path} is not a JSON object; download or save it again.") from None
    return value


def special_tokens(directory: Path) -> dict[str, str]:
    """Return the texts of the named special tokens, like ``bos_token`` and ``eos_token``."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in read_object(directory / name).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found
