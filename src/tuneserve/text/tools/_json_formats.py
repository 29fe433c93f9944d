"""Formats whose calls are JSON: Hermes and Qwen, Granite, Llama 3, Mistral."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuneserve.text.tools._definitions import ToolDefinition
from tuneserve.text.tools._events import Said
from tuneserve.text.tools._format import Reader
from tuneserve.text.tools._json import read_arguments, read_call, read_calls, read_space
from tuneserve.text.tools._rules import either, json_calls, literal, marker, repeated, schemas

_MAX_NAME = 256


@dataclass(frozen=True)
class TaggedJson:
    """``<tool_call>{"name": ..., "arguments": ...}</tool_call>`` per call, as Hermes, Qwen and Granite 4 write it."""

    name: str
    tokens: Mapping[str, int]
    starts: tuple[str, ...] = ("<tool_call>",)
    bare: tuple[str, ...] = ()
    ends: tuple[str, ...] = ("</tool_call>",)

    def read(self, start: str, tools: Mapping[str, ToolDefinition], said: list[Said]) -> Reader:  # noqa: ARG002
        """Return a reader of an object, or an array of them."""
        return read_calls(said)

    def rules(self, tools: Sequence[ToolDefinition], parallel: bool) -> str:
        """Return lark rules of ``calls``."""
        start, end = marker(self.starts[0], self.tokens), marker(self.ends[0], self.tokens)
        one = f'tagged: {start} "\\n" call "\\n" {end}\n'
        return repeated("calls", "tagged", '"\\n"', parallel) + one + json_calls(tools, "arguments")


@dataclass(frozen=True)
class JsonList:
    """A marker and an array of all calls: ``<|tool_call|>[...]`` of Granite 3, ``[TOOL_CALLS][...]`` of Mistral."""

    name: str
    tokens: Mapping[str, int]
    starts: tuple[str, ...]
    bare: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()

    def read(self, start: str, tools: Mapping[str, ToolDefinition], said: list[Said]) -> Reader:  # noqa: ARG002
        """Return a reader of an array, or of one object."""
        return read_calls(said)

    def rules(self, tools: Sequence[ToolDefinition], parallel: bool) -> str:
        """Return lark rules of ``calls``."""
        array = f'calls: {marker(self.starts[0], self.tokens)} "[" listed "]"\n'
        return array + repeated("listed", "call", '", "', parallel) + json_calls(tools, "arguments")


@dataclass(frozen=True)
class LlamaJson:
    """``{"name": ..., "parameters": ...}`` as the whole answer, as Llama 3 writes it, maybe after a marker.

    Only offered functions count, since nothing else tells a call from an answer in JSON.
    """

    name: str
    tokens: Mapping[str, int]
    starts: tuple[str, ...] = ("<|python_tag|>",)
    bare: tuple[str, ...] = ("{",)
    ends: tuple[str, ...] = (";",)

    def read(self, start: str, tools: Mapping[str, ToolDefinition], said: list[Said]) -> Reader:
        """Return a reader of an object."""
        if start != "{" and (yield from read_space()) != "{":
            return False
        return (yield from read_call(said, tools))

    def rules(self, tools: Sequence[ToolDefinition], parallel: bool) -> str:
        """Return lark rules of ``calls``."""
        return repeated("calls", "call", '"; "', parallel) + json_calls(tools, "parameters")


@dataclass(frozen=True)
class MistralNamed:
    """``[TOOL_CALLS]name[ARGS]{...}`` per call, with ``[CALL_ID]`` between where ``with_id``: Mistral since v11."""

    name: str
    tokens: Mapping[str, int]
    with_id: bool
    starts: tuple[str, ...] = ("[TOOL_CALLS]",)
    bare: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()

    def read(self, start: str, tools: Mapping[str, ToolDefinition], said: list[Said]) -> Reader:  # noqa: ARG002
        """Return a reader of a name and an object; also of the array of calls of earlier models."""
        char = yield from read_space()
        if char == "[":
            return (yield from read_calls(said, char))
        head = ""
        while char != "{":
            head += char
            if len(head) > _MAX_NAME:
                return False
            char = yield
        name = head.removesuffix("[ARGS]").partition("[CALL_ID]")[0].strip()
        if not name or any(char.isspace() or char in "[]" for char in name):
            return False
        return (yield from read_arguments(said, name))

    def rules(self, tools: Sequence[ToolDefinition], parallel: bool) -> str:
        """Return lark rules of ``calls``."""
        start, given = marker("[TOOL_CALLS]", self.tokens), marker("[ARGS]", self.tokens)
        number = f"{marker('[CALL_ID]', self.tokens)} /[a-zA-Z0-9]{{9}}/ " if self.with_id else ""
        bodies = [f"{start} {literal(tool.name)} {number}{given} args_{i}" for i, tool in enumerate(tools)]
        return repeated("calls", "call", "", parallel) + either("call", bodies) + schemas(tools)
