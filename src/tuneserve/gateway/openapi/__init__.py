"""``/openapi.json``: the service describes itself."""

from tuneserve.gateway.openapi._document import document
from tuneserve.gateway.openapi._routes import add_document_route

__all__ = ["add_document_route", "document"]
