"""The route of the document; the page that shows it is among the pages."""

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from tuneserve.gateway._errors import json_response
from tuneserve.gateway.openapi._document import document


def add_document_route(app: FastAPI) -> None:
    """Add it."""

    async def openapi(_: Request) -> Response:
        return json_response(document())

    app.add_route("/openapi.json", openapi)
