"""The file of API keys, as far as a deployment has to know it."""

import tomllib
from pathlib import Path

from tuneserve.errors import InputError

_MAX_BYTES = 1 << 20


def read_key_file(path: Path) -> str:
    """Return the text of a file of API keys, which holds only their hashes.

    Raises:
        InputError: it cannot be read, or has no keys.
    """
    make = f"make one with 'tuneserve keys add NAME --file {path}'"
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"the file of API keys {path} cannot be read ({error.strerror}); {make}.") from None
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError
        text = data.decode()
        tables = tomllib.loads(text).values()
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not a file of API keys; {make}.") from None
    if not tables or not all(isinstance(table, dict) and isinstance(table.get("sha256"), str) for table in tables):
        raise InputError(f"{path} has no API keys, or entries without their sha256; {make}.")
    return text
