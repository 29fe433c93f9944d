"""The answer to a request that failed, in the form of the API that was asked."""

from starlette.responses import Response

from tuneserve.gateway._errors import as_api_error, json_response
from tuneserve.gateway.anthropic._errors import error_body

_ANTHROPIC = "/v1/messages"


def error_response(error: Exception, path: str) -> Response:
    """Return the whole HTTP answer to what handling a request at ``path`` raised."""
    refusal = as_api_error(error)
    body = error_body(refusal) if path == _ANTHROPIC or path.startswith(f"{_ANTHROPIC}/") else refusal.body()
    return json_response(body, refusal.status, refusal.headers)
