"""Sizes as people write them."""

import re

from tuneserve.errors import InputError

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]*)")


def parse_size(text: str) -> int:
    """Return the bytes of ``5GB``, ``500 MB``, ``2GiB`` or a plain number.

    Raises:
        InputError: it is none of these, or not positive.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or not (size := int(float(match[1]) * unit)):
        raise InputError(f"{text[:40]!r} is not a size; write it as 5GB or 500MB.")
    return size
