"""What can go wrong between this client and a server."""

import msgspec

from tuneserve.errors import TuneserveError

_LONGEST_QUOTE = 200
_REMEDIES = {
    401: "give the API key it asks for",
    403: "give an API key that is allowed this",
    404: "check the URL and the model's name",
    429: "send less at once, or wait and try again",
}


class TransportError(TuneserveError):
    """The server could not be reached, did not answer in time, or broke off."""


class ProtocolError(TuneserveError):
    """The server answered something that is not in the OpenAI API's form."""


class ApiError(TuneserveError):
    """The server answered with an error; the fields are those of its ``error`` object, None where it has none.

    ``status`` is the HTTP status, which is 200 for an error in the middle of a stream.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,  # noqa: A002
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        where = "in the middle of the stream" if status < 400 else f"with status {status}"
        remedy = _REMEDIES.get(status, "correct the request" if 400 <= status < 500 else "see the server's log")
        super().__init__(f"the server answered {where} ({message}); {remedy}.")
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param


class _Details(msgspec.Struct, frozen=True):
    message: str
    type: str | None = None
    code: str | int | None = None
    param: str | None = None


class _ErrorBody(msgspec.Struct, frozen=True):
    error: _Details


def api_error(status: int, body: bytes) -> ApiError:
    """Return the error that ``body`` describes, in OpenAI's form or any other."""
    return parse_error(status, body) or ApiError(status, quoted(body.decode("utf-8", "replace")) or "no explanation")


def parse_error(status: int, body: bytes) -> ApiError | None:
    """Return the error that ``body`` describes in OpenAI's form, or None if it does not."""
    try:
        details = msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    code = None if details.code is None else str(details.code)
    return ApiError(status, quoted(details.message), type=details.type, code=code, param=details.param)


def quoted(text: str) -> str:
    """Return what a server said on one line, cut when long, and without what would move a terminal's cursor."""
    line = " ".join(text.split())
    shown = "".join(character if character.isprintable() else "�" for character in line[:_LONGEST_QUOTE])
    return shown.rstrip(".") if len(line) <= _LONGEST_QUOTE else shown + "…"
