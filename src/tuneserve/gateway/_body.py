"""The request body: bounded in size, time and depth, and strictly JSON."""

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request

from tuneserve.gateway._errors import ApiError

_READ_SECONDS = 60.0
# A body somewhat too large is read to its end, for a client that is still sending does not see the answer.
_DISCARDED = 8


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """Return the JSON object in the body, whatever content type it claims.

    Raises:
        ApiError: it is larger than ``limit`` bytes, arrives too slowly, or is not a JSON object in UTF-8.
    """
    try:
        async with asyncio.timeout(_READ_SECONDS):
            body = await _read(request, limit)
    except TimeoutError:
        message = f"The body did not arrive within {_READ_SECONDS:.0f} seconds; send it faster."
        raise ApiError(408, message, headers={"Connection": "close"}) from None
    return decode_object(body)


async def _read(request: Request, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared[:20]) <= _DISCARDED * limit:
        async for part in request.stream():
            size += len(part)
            if size > _DISCARDED * limit:
                break
            if size <= limit:
                parts.append(part)
        if size <= limit:
            return b"".join(parts)
    message = f"The body is larger than {limit} bytes; send less, or raise the server's limit."
    raise ApiError(413, message, code="request_too_large", headers={"Connection": "close"})


def decode_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in ``body``.

    Raises:
        ApiError: it is not one.
    """
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(" - at")[0]
        message = f"The body is not valid JSON ({reason}); send one JSON object in UTF-8."
        raise ApiError(400, message, code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body is not a JSON object; send one.", code="invalid_json")
    return value
