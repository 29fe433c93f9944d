"""Errors in Anthropic's form."""

from tuneserve.gateway._errors import ApiError
from tuneserve.gateway._shapes import Json

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(error: ApiError) -> Json:
    """Return the object that Anthropic's clients expect; the message alone can name the field."""
    message = str(error)
    if error.param is not None and f"'{error.param}'" not in message:
        message = f"'{error.param}': {message}"
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": None}
