"""Chat templates: a conversation as the text that the model was trained on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.meta import find_undeclared_variables

from tuneserve.errors import RequestError, TextError
from tuneserve.text._files import read_bytes, read_object, special_tokens
from tuneserve.text._meter import UnfinishedError, measure
from tuneserve.text._sandbox import Environment, TemplateRefusalError

TEMPLATE_FILE = "chat_template.jinja"
_MAX_SOURCE = 200_000
_REASONING = ("reasoning_content", "thinking", "reasoning")
# A private-use character, which no text to be continued has.
_MARK = "\ue0c7CONTINUE_FROM_HERE"
_environment = Environment()


@dataclass(frozen=True)
class ChatTemplate:
    """A compiled template, with a second one where the model has its own for tools."""

    source: str
    template: Template
    tool_template: Template | None
    special_tokens: Mapping[str, str]
    tool_source: str | None = None

    @cached_property
    def variables(self) -> frozenset[str]:
        """The names that the template reads and does not set."""
        sources = filter(None, (self.source, self.tool_source))
        return frozenset().union(*(find_undeclared_variables(_environment.parse(source)) for source in sources))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
        is_trial: bool = False,
    ) -> str:
        """Return the conversation as text, the same as Transformers' ``apply_chat_template`` byte for byte.

        Args:
            messages: each with ``role`` and ``content``; what is None in them is left out.
            tools: JSON schemas of functions.
            add_generation_prompt: end with the beginning of an answer.
            continue_final_message: end within the last message instead, which the model then continues.
            variables: more names for the template.
            is_trial: give up where it takes longer than about a millisecond.

        Raises:
            UnfinishedError: a trial gave up.
            RequestError: the template refuses these messages, or leaves out the one to be continued.
            TextError: the template is broken, or takes more time or memory than a conversation needs.
        """
        if not messages:
            raise RequestError("there are no messages; send at least one.", "messages")
        template = self.tool_template if tools and self.tool_template else self.template
        names = {**self.special_tokens, **(variables or {})}
        names |= {
            "messages": [_as_templates_expect(message) for message in messages],
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
        }
        ending: str | None = None

        def generate() -> Iterator[str]:
            nonlocal ending
            # Before they are copied, which takes long where there are many.
            measure(names)
            plain = _plain(names)
            ending = _mark_ending(plain["messages"][-1]) if continue_final_message else None
            return template.generate(plain)

        try:
            text = _environment.bounded(generate, is_trial=is_trial)
        except TemplateRefusalError as error:
            raise RequestError(f"the chat template refuses these messages: {_reason(error)}.", "messages") from None
        except (RequestError, UnfinishedError):
            raise
        # A template is a program of a stranger's; it may fail in any way.
        except Exception as error:
            raise TextError(
                f"the chat template failed on these messages ({_reason(error)}); "
                "send messages of the form it expects, or repair it."
            ) from None
        return text if ending is None else _cut_at_mark(text, ending)


def open_chat_template(directory: Path, model_dir: Path | None = None) -> ChatTemplate | None:
    """Open the chat template in ``directory``, else that in ``model_dir``; None where there is none.

    Raises:
        TextError: it is malformed or huge.
    """
    sources = _sources(directory)
    if not sources:
        return None if model_dir is None else open_chat_template(model_dir)
    default = sources["default"]
    tool_source = sources.get("tool_use")
    tool_template = _compile(tool_source, directory) if tool_source else None
    return ChatTemplate(default, _compile(default, directory), tool_template, special_tokens(directory), tool_source)


def compile_chat_template(source: str, special_tokens: Mapping[str, str], where: str) -> ChatTemplate:
    """Compile a chat template that is at hand as text; ``where`` names it in errors.

    Raises:
        TextError: it is malformed or huge.
    """
    return ChatTemplate(source, _compile(source, where), None, special_tokens)


def _sources(directory: Path) -> dict[str, str]:
    named = {"default": _read_source(directory / TEMPLATE_FILE)}
    named["tool_use"] = _read_source(directory / "additional_chat_templates" / "tool_use.jinja")
    if named["default"] is not None:
        return {name: source for name, source in named.items() if source is not None}
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
    if found and "default" not in found:
        raise TextError(f"chat_template in {config} has no template named default; name one of them so.")
    return found


def _read_source(path: Path) -> str | None:
    data = read_bytes(path, _MAX_SOURCE)
    try:
        # Line ends as in a text file, which is what Transformers reads.
        return None if data is None else data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise TextError(f"{path} is not UTF-8 text; download or save it again.") from None


def _compile(source: str, where: str | Path) -> Template:
    if len(source) > _MAX_SOURCE:
        raise TextError(f"the chat template in {where} is larger than {_MAX_SOURCE:,} characters; save it again.")
    try:
        return _environment.from_string(source)
    except Exception as error:
        raise TextError(
            f"the chat template in {where} is malformed ({_reason(error)}); download or save it again."
        ) from None


def _as_templates_expect(message: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what is None, and give a message's reasoning under the names that templates read."""
    given = {key: value for key, value in message.items() if value is not None}
    reasoning = next((given[key] for key in _REASONING if key in given), None)
    return given if reasoning is None else {"thinking": reasoning, **given, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """Copy JSON data into Python's own types, whose methods the sandbox knows."""
    if value is None or type(value) in (str, bool, int, float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    raise RequestError(f"a value for the chat template is a {type(value).__name__}, which is not JSON; leave it out.")


def _mark_ending(message: dict[str, Any]) -> str:
    """Append a mark to the last text of ``message`` and return that text without it."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [message]
    for part in reversed(parts):
        key = "content" if part is message else "text"
        if isinstance(part, dict) and isinstance(text := part.get(key), str):
            part[key] = text + _MARK + " "
            return text
    raise RequestError(
        "the last message has no text in it, so it cannot be continued; give it some, or leave "
        "continue_final_message out.",
        "messages",
    )


def _cut_at_mark(text: str, ending: str) -> str:
    before, mark, after = text.rpartition(_MARK)
    if not mark or ending.strip() not in text:
        raise RequestError(
            "the chat template leaves the last message out, so it cannot be continued; end with another.", "messages"
        )
    # The space behind the mark is gone where the template strips messages, and then the end of the text is too.
    return before if after.startswith(" ") else before.rstrip()


def _reason(error: BaseException) -> str:
    return (str(error).partition("\n")[0][:300] or type(error).__name__).rstrip(".")
