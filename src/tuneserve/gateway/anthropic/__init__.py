"""Anthropic's API: ``/v1/messages`` and ``/v1/messages/count_tokens``."""

from tuneserve.gateway.anthropic._errors import error_body
from tuneserve.gateway.anthropic._routes import add_message_routes

__all__ = ["add_message_routes", "error_body"]
