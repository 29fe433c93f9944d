"""Everything a client can be told went wrong, in OpenAI's error form."""

import logging
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from tuneserve.errors import EngineError, RequestError, TextError

_logger = logging.getLogger("tuneserve.gateway")
_LONGEST_QUOTE = 80


class ApiError(Exception):
    """An answer that is not 200: its HTTP status, and what goes into the ``error`` object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def renamed(self, names: Mapping[str, str]) -> "ApiError":
        """Return the same error of a request in which fields have other names: ``names`` maps ours to theirs.

        ``[*]`` in both stands for an index.
        """
        for ours, theirs in names.items():
            place = re.escape(ours).replace(re.escape("[*]"), r"(?P<index>\[\d+\])")
            found = re.fullmatch(rf"{place}(?P<rest>[.\[].*)?", self.param or "", re.DOTALL)
            if found is not None:
                path = theirs.replace("[*]", found.groupdict().get("index", "")) + (found["rest"] or "")
                message = str(self).replace(f"'{self.param}'", f"'{path}'").replace(f"'{ours}'", f"'{theirs}'")
                return ApiError(self.status, message, param=path, code=self.code, headers=self.headers)
        return self

    def body(self) -> dict[str, Any]:
        """Return the object that clients expect."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return ``content`` as a JSON answer."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def quoted(text: str) -> str:
    """Return untrusted text for use in a message: escaped, and cut when long."""
    return repr(text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "…")


def unavailable(message: str, code: str) -> ApiError:
    """Return the answer while no requests are taken, here or for good."""
    return ApiError(503, message, code=code, headers={"Retry-After": "5"})


def context_exceeded(message: str, param: str) -> ApiError:
    """Return the answer to a request for more tokens than the context holds."""
    return ApiError(400, message, param=param, code="context_length_exceeded")


def as_api_error(error: Exception) -> ApiError:
    """Translate what handling a request raised; what is not the client's to know is logged and not told."""
    match error:
        case ApiError():
            return error
        case ClientDisconnect():
            return ApiError(499, "The client left before its request was read.")
        case RequestError():
            return ApiError(400, str(error), param=error.param, code="invalid_value")
        case TextError():
            return ApiError(400, str(error), param="messages", code="invalid_value")
        case EngineError():
            _logger.error("a sequence failed: %s", error)
            return ApiError(
                503, "The engine failed while it worked on this request; send it again.", code="engine_error"
            )
    _logger.error("a request failed unexpectedly", exc_info=error)
    return ApiError(500, "The server failed on this request; its log says why.", code="internal_error")
