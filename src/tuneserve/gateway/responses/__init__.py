"""OpenAI's responses: ``/v1/responses``."""

from tuneserve.gateway.responses._routes import add_response_routes

__all__ = ["add_response_routes"]
