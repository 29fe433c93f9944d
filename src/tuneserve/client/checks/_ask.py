"""Asking for what the typed client has no method for."""

from typing import Any

import msgspec

from tuneserve.client import ApiError, ProtocolError
from tuneserve.client._http import raise_for_status
from tuneserve.client.checks._result import Finding, Target, expect

NO_SUCH_PATH = (404, 405)
Json = dict[str, Any]


def ask(target: Target, path: str, body: Json, *, unnamed: bool = False) -> Json:
    """Return the JSON object that the server answers a POST with; ``unnamed`` leaves the model out.

    Raises:
        Finding: there is no such path.
        ApiError: it is refused.
        ProtocolError: the answer is no JSON object.
    """
    answer = target.client.post(path, body if unnamed else {"model": target.model, **body})
    if answer.status in NO_SUCH_PATH:
        raise Finding("unsupported", f"there is no {path}.")
    raise_for_status(answer, target.client.url + path)
    return _object(answer.body, path)


def events(target: Target, path: str, body: Json) -> list[tuple[str, Json]]:
    """Return the named events that the server answers a POST with.

    Raises:
        Finding: there is no such path, or an event has no name or no JSON object.
        ApiError: it is refused.
    """
    answer = target.client.post(path, {"model": target.model, **body, "stream": True})
    if answer.status in NO_SUCH_PATH:
        raise Finding("unsupported", f"there is no {path}.")
    raise_for_status(answer, target.client.url + path)
    found = []
    for block in answer.body.decode(errors="replace").replace("\r\n", "\n").split("\n\n"):
        lines = dict(line.partition(": ")[::2] for line in block.split("\n") if line and not line.startswith(":"))
        if lines.get("data", "[DONE]") != "[DONE]":
            found.append((lines.get("event", ""), _object(lines["data"].encode(), path)))
    expect(found, "the stream has no events.")
    return found


def refused(target: Target, path: str, body: Json) -> ApiError | None:
    """Return the error that the server answers a POST with; None where it takes it."""
    try:
        ask(target, path, body)
    except ApiError as error:
        return error
    return None


def at(value: Any, *path: str | int) -> Any:
    """Return what is at ``path`` in JSON; None where there is nothing."""
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def parsed(text: str | bytes) -> Any:
    """Return the value that ``text`` is as JSON; None where it is none."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _object(body: bytes, path: str) -> Json:
    value = parsed(body)
    if not isinstance(value, dict):
        raise ProtocolError(f"{path} did not answer with a JSON object; check that the URL is a server of this API.")
    return value
