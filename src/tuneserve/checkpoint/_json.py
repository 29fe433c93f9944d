"""JSON from strangers: strict, and refused before it can fill the memory."""

import json
from typing import Any

# A tensor of a header takes about eight, so this is room for 125,000 in one file; parsed they take 100 MB.
MAX_ITEMS = 1_000_000


def strict_json(raw: bytes) -> Any:
    """Parse JSON in UTF-8.

    Raises:
        ValueError: it is not that, is nested too deeply, names something twice in one object, or has over
            :data:`MAX_ITEMS` values.
    """
    if sum(raw.count(mark) for mark in (b",", b"[", b"{")) > MAX_ITEMS:
        raise ValueError("it has more values than any model needs")
    try:
        return json.loads(raw.decode(), object_pairs_hook=_no_duplicates)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("it names something twice")
    return result
