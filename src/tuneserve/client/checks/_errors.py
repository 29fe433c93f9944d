"""How a server must refuse what it cannot do."""

from typing import Any

import msgspec

from tuneserve.client import RawResponse
from tuneserve.client.checks._result import PROMPT, Target, expect, messages

_CHAT = "/v1/chat/completions"
_NO_MODEL = "tuneserve-check-no-such-model"
_BROKEN = b'{"model": '
_FIELDS = ("message", "type", "param", "code")


def unknown_model(target: Target) -> str:
    """A model that does not exist is a 404."""
    answer = target.client.post(_CHAT, {"model": _NO_MODEL, "messages": messages(PROMPT), "max_tokens": 1})
    _expect_status(answer, 404, "an unknown model")
    flaw = _flaw(answer.body)
    expect(not flaw, f"The 404 is not in OpenAI's error form: {flaw}.")
    return "an unknown model is answered with 404."


def invalid_json(target: Target) -> str:
    """A body that is not JSON is a 400."""
    _expect_status(target.client.post(_CHAT, _BROKEN), 400, "broken JSON")
    return "broken JSON is answered with 400."


def invalid_value(target: Target) -> str:
    """A value that makes no sense is a 400."""
    _expect_status(target.client.post(_CHAT, _cold(target)), 400, "temperature -1")
    return "temperature -1 is answered with 400."


def error_form(target: Target) -> str:
    """Refusals have an ``error`` object with message, type, param and code."""
    refusals = 0
    for what, body in (("broken JSON", _BROKEN), ("temperature -1", _cold(target))):
        answer = target.client.post(_CHAT, body)
        flaw = _flaw(answer.body) if answer.status >= 400 else ""
        expect(not flaw, f"{what} is not answered in OpenAI's error form: {flaw}.")
        refusals += answer.status >= 400
    expect(refusals, "neither broken JSON nor temperature -1 is answered with an error.")
    return "errors have a message, a type, a param and a code."


def _cold(target: Target) -> dict[str, Any]:
    return {"model": target.model, "messages": messages(PROMPT), "max_tokens": 1, "temperature": -1}


def _expect_status(answer: RawResponse, status: int, what: str) -> None:
    expect(answer.status == status, f"{what} is answered with {answer.status} instead of {status}.")


def _flaw(body: bytes) -> str:
    """Return what keeps ``body`` from being OpenAI's error form, or nothing; a number is taken as a code too."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return "it is not JSON"
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict):
        return "there is no object 'error'"
    missing = [field for field in _FIELDS if field not in error]
    if missing:
        return f"there is no {missing[0]!r} in 'error'"
    if not isinstance(error["message"], str) or not error["message"]:
        return "'message' is no text"
    if not isinstance(error["type"], str):
        return "'type' is no text"
    if not isinstance(error["param"], str | None):
        return "'param' is neither text nor null"
    if isinstance(error["code"], bool) or not isinstance(error["code"], str | int | None):
        return "'code' is neither text nor a number nor null"
    return ""
