"""The files around a tokenizer, any of which may be absent and all of which may be hostile."""

import json
from pathlib import Path
from typing import Any

from tuneserve.errors import TextError

_MAX_BYTES = 20_000_000


def read_bytes(path: Path, limit: int) -> bytes | None:
    """Read a regular file of at most ``limit`` bytes; None where there is none.

    Raises:
        TextError: it is larger, no regular file, or unreadable.
    """
    try:
        if not path.exists():
            return None
        if not path.is_file():
            raise TextError(f"{path} is not a regular file; download or save it again.")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise TextError(f"{path} cannot be read ({error.strerror}); correct its permissions.") from None
    if len(data) > limit:
        raise TextError(f"{path} is larger than {limit:,} bytes, more than any model needs; download it again.")
    return data


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object, empty where there is no file.

    Raises:
        TextError: the file is huge, unreadable, or no JSON object.
    """
    data = read_bytes(path, _MAX_BYTES)
    if data is None:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise TextError(f"{path} is not a JSON object; download or save it again.")
    return value


def special_tokens(directory: Path) -> dict[str, str]:
    """Return the texts of the named special tokens, like ``bos_token`` and ``eos_token``.

    As in Transformers, ``special_tokens_map.json`` counts only beside a ``tokenizer_config.json`` of the old form, and
    overrides it.
    """
    values = read_object(directory / "tokenizer_config.json")
    if "added_tokens_decoder" not in values:
        values = values | read_object(directory / "special_tokens_map.json")
    found: dict[str, str] = {}
    for key, value in values.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str) and text:
            found[key] = text
    return found
