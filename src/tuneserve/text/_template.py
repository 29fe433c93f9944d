"""Chat templates: a conversation as the text that the model was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError

from tuneserve.errors import RequestError, TextError
from tuneserve.text._files import read_object, special_tokens
from tuneserve.text._sandbox import Environment, TemplateRefusalError

TEMPLATE_FILE = "chat_template.jinja"
_MAX_SOURCE = 1_000_000
_environment = Environment()


@dataclass(frozen=True)
class ChatTemplate:
    """A compiled template, with a second one where the model has its own for tools."""

    source: str
    template: Template
    tool_template: Template | None
    special_tokens: Mapping[str, str]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the conversation as text, the same as Transformers' ``apply_chat_template`` byte for byte.

        Args:
            messages: each with ``role`` and ``content``.
            tools: JSON schemas of functions.
            add_generation_prompt: end with the beginning of an answer.
            continue_final_message: end within the last message instead, which the model then continues.
            variables: more names for the template.

        Raises:
            RequestError: the template refuses these messages.
            TextError: the template is broken or does too much.
        """
        template = self.tool_template if tools and self.tool_template else self.template
        names = {**self.special_tokens, **(variables or {})}
        names |= {
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
        }
        try:
            text = _environment.bounded(lambda: template.generate(names))
        except TemplateRefusalError as error:
            raise RequestError(f"the chat template refuses these messages: {_reason(error)}.", "messages") from None
        except (
            TemplateError,
            ArithmeticError,
            LookupError,
            MemoryError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise TextError(
                f"the chat template failed on these messages ({_reason(error)}); "
                "send messages of the form it expects, or repair it."
            ) from None
        return _cut_after_final(text, messages) if continue_final_message else text


def open_chat_template(directory: Path) -> ChatTemplate | None:
    """Open the chat template of a model directory; None where it has none.

    Raises:
        TextError: it is malformed or huge.
    """
    sources = _sources(directory)
    if not sources:
        return None
    default = sources.get("default") or next(iter(sources.values()))
    tool_source = sources.get("tool_use")
    tool_template = _compile(tool_source, directory) if tool_source else None
    return ChatTemplate(default, _compile(default, directory), tool_template, special_tokens(directory))


def _sources(directory: Path) -> dict[str, str]:
    path = directory / TEMPLATE_FILE
    try:
        if path.is_file():
            return {"default": path.read_text(encoding="utf-8")}
    except (OSError, UnicodeDecodeError):
        raise TextError(f"{path} is not a text file; download or save it again.") from None
    config = directory / "tokenizer_config.json"
    value: Any = read_object(config).get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    try:
        found = {item["name"]: item["template"] for item in value}
    except (TypeError, KeyError):
        found = {None: None}
    if not all(isinstance(text, str) for pair in found.items() for text in pair):
        raise TextError(f"chat_template in {config} is neither a text nor a list of named texts; save it again.")
    return found


def _compile(source: str, directory: Path) -> Template:
    if len(source) > _MAX_SOURCE:
        raise TextError(f"the chat template in {directory} is larger than 1 MB; download or save it again.")
    try:
        return _environment.from_string(source)
    except (TemplateError, RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
        raise TextError(
            f"the chat template in {directory} is malformed ({_reason(error)}); download or save it again."
        ) from None


def _cut_after_final(text: str, messages: Sequence[Mapping[str, Any]]) -> str:
    content = messages[-1].get("content") if messages else None
    if isinstance(content, list) and content and isinstance(content[-1], Mapping):
        content = content[-1].get("text")
    if not isinstance(content, str) or (start := text.rfind(content.strip())) < 0:
        raise RequestError("the last message is not in the rendered text, so it cannot be continued.", "messages")
    whole = content.lstrip()
    return (
        text[: start + len(whole)]
        if text[start : start + len(whole)] == whole
        else text[: start + len(content.strip())]
    )


def _reason(error: BaseException) -> str:
    return (str(error).partition("\n")[0][:300] or type(error).__name__).rstrip(".")
