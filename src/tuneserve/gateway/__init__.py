"""The OpenAI API in front of any engine, what an operator needs around it, and the chat page."""

from tuneserve.gateway._app import create_app
from tuneserve.gateway._keys import Limits, add_key
from tuneserve.gateway._listen import Tls, listen
from tuneserve.gateway._log import logging_to
from tuneserve.gateway._sampling import without_lacking
from tuneserve.gateway._serve import serve
from tuneserve.gateway._served import Agreement, ServedModel, Step, read_sampling_defaults
from tuneserve.gateway._state import Settings

__all__ = [
    "Agreement",
    "Limits",
    "ServedModel",
    "Settings",
    "Step",
    "Tls",
    "add_key",
    "create_app",
    "listen",
    "logging_to",
    "read_sampling_defaults",
    "serve",
    "without_lacking",
]
