"""Calls and thoughts: found in what a model writes, and enforced by a grammar."""

from tuneserve.text.tools._definitions import ToolDefinition, check_tools
from tuneserve.text.tools._detect import reasoning_format, tool_format
from tuneserve.text.tools._events import CallArguments, CallStarted, Content, Event, Reasoning
from tuneserve.text.tools._format import ReasoningFormat, ToolFormat, visible_ids
from tuneserve.text.tools._grammar import grammar
from tuneserve.text.tools._messages import template_messages
from tuneserve.text.tools._parser import Parser

__all__ = [
    "CallArguments",
    "CallStarted",
    "Content",
    "Event",
    "Parser",
    "Reasoning",
    "ReasoningFormat",
    "ToolDefinition",
    "ToolFormat",
    "check_tools",
    "grammar",
    "reasoning_format",
    "template_messages",
    "tool_format",
    "visible_ids",
]
