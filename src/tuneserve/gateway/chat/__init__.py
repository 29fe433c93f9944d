"""``/v1/chat/completions`` and ``/v1/completions``."""

from tuneserve.gateway.chat._calls import offered
from tuneserve.gateway.chat._routes import add_chat_routes
from tuneserve.gateway.chat._work import conversation_prompt, conversation_work, renaming

__all__ = ["add_chat_routes", "conversation_prompt", "conversation_work", "offered", "renaming"]
