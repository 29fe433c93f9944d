"""``/v1/chat/completions`` and ``/v1/completions``."""

from tuneserve.gateway.chat._calls import make_reader
from tuneserve.gateway.chat._routes import add_chat_routes
from tuneserve.gateway.chat._work import conversation_work

__all__ = ["add_chat_routes", "conversation_work", "make_reader"]
