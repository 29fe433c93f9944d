"""The application: which path is answered by what."""

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tuneserve.gateway._adapters import add_adapter_routes
from tuneserve.gateway._edge import Edge
from tuneserve.gateway._embeddings import add_embedding_route
from tuneserve.gateway._errors import ApiError, quoted
from tuneserve.gateway._operate import add_operator_routes
from tuneserve.gateway._page import add_page
from tuneserve.gateway._refusal import error_response
from tuneserve.gateway._served import ServedModel
from tuneserve.gateway._state import Gateway, Settings
from tuneserve.gateway._tokens import add_token_routes
from tuneserve.gateway.anthropic import add_message_routes
from tuneserve.gateway.chat import add_chat_routes
from tuneserve.gateway.openapi import add_document_route
from tuneserve.gateway.responses import add_response_routes


def create_app(served: ServedModel, settings: Settings | None = None) -> FastAPI:
    """Return an application that serves one running model; closing its engine is the caller's."""
    gateway = Gateway(settings or Settings())
    gateway.open(served)
    return application(gateway)


def application(gateway: Gateway) -> FastAPI:
    """Return the application over ``gateway``, which may still be starting."""
    # The document is our own, because bodies are bounded before anything parses them.
    app = FastAPI(title="tuneserve", openapi_url=None, redirect_slashes=False)
    app.add_exception_handler(HTTPException, _http_error)
    add_page(app)
    add_operator_routes(app, gateway)
    add_chat_routes(app, gateway)
    add_document_route(app)
    add_response_routes(app, gateway)
    add_message_routes(app, gateway)
    add_embedding_route(app, gateway)
    add_token_routes(app, gateway)
    add_adapter_routes(app, gateway)
    app.add_middleware(Edge, gateway=gateway, paths=frozenset(getattr(route, "path", "") for route in app.routes))
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    # Not request.url, which is put together from the Host header and need not be a URL.
    path = request.scope["path"]
    if error.status_code == 405:
        message = (
            f"{request.method} is not allowed on {quoted(path)}; use {(error.headers or {}).get('Allow', 'another')}."
        )
    else:
        message = f"There is nothing at {quoted(path)}; the API is under /v1."
    refusal = ApiError(error.status_code, message, code="unknown_url", headers=error.headers)
    return error_response(refusal, path)
