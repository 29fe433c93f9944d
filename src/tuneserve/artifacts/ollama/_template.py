"""A model's own chat template as one for Ollama, checked by rendering the same conversations with both."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from tuneserve.artifacts.ollama._evaluate import GoTemplateError, render_go
from tuneserve.artifacts.ollama._turns import (
    Message,
    NotTurnsError,
    Renderer,
    Turns,
    assistant,
    find_turns,
    system,
    user,
)
from tuneserve.artifacts.ollama._write import go_template
from tuneserve.errors import TextError
from tuneserve.text import ChatTemplate

_CONTENTS = (
    ("Answer briefly.", "What is 2 + 2?", "It is 4."),
    (
        'Say "yes", {{ .Content }} or {% raw %}.\n\nThen \\ stop.',
        "def f(x):\n\treturn {'a': [x, <b>]}  # 100 %\n~!@$^&*()_+=-`|\\:;'<>?,./",
        "Été à 東京 🙂:\n\n- one\n- two & three",
    ),
    ("1", "2", "3"),
)
_PADDED = "  padded \n"
_REASONED = "<think>\nLet me see.\n</think>\n\nYes."


@dataclass(frozen=True)
class OllamaTemplate:
    """``source`` in Go's text/template; ``notes`` say what of the model's own template it leaves out."""

    source: str
    turns: Turns
    notes: tuple[str, ...]


def translate(template: ChatTemplate, *, adds_bos: bool) -> OllamaTemplate:
    """Write ``template`` for Ollama, and check it.

    Args:
        template: the model's own.
        adds_bos: whether llama.cpp adds a BOS to prompts, which the result then leaves out.

    Raises:
        TextError: the template does more than to write turns one after another, so that Ollama's would be another.
    """
    try:
        render = Renderer(template, adds_bos=adds_bos)
        turns = find_turns(render)
        most = go_template(turns, anywhere=True, prefill=True)
        anywhere = _agrees(render, turns, most, _later())
        prefill = _agrees(render, turns, most, _unfinished(), prefill=True)
        source = go_template(turns, anywhere=anywhere, prefill=prefill)
        for messages in _conversations():
            if not _agrees(render, turns, source, [messages]):
                roles = ", ".join(message["role"] for message in messages)
                raise NotTurnsError(f"writes a conversation ({roles}) in a way of its own")
    except NotTurnsError as error:
        raise TextError(
            f"the chat template cannot be written for Ollama because it {error}; "
            "serve the model with llama.cpp's --jinja or with tuneserve serve."
        ) from None
    return OllamaTemplate(source, turns, tuple(_notes(template, render, adds_bos=adds_bos)))


def _agrees(
    render: Renderer,
    turns: Turns,
    source: str,
    conversations: Sequence[Sequence[Message]],
    *,
    prefill: bool = False,
) -> bool:
    for messages in conversations:
        wanted = render(messages, prefill=prefill)
        defaulted = turns.default_system and messages[0]["role"] != "system"
        given = [system(turns.default_system), *messages] if defaulted else messages
        try:
            found = render_go(source, given)
        except GoTemplateError:
            found = None
        if wanted != found:
            return False
    return True


def _conversations() -> Iterator[list[Message]]:
    for said, asked, answered in _CONTENTS:
        turn = [user(asked), assistant(answered)]
        for begin, count in product(([], [system(said)]), range(4)):
            yield [*begin, *turn * count, user(asked)]


def _later() -> list[list[Message]]:
    return [[user(asked), assistant(answered), system(said), user(asked)] for said, asked, answered in _CONTENTS]


def _unfinished() -> list[list[Message]]:
    return [messages[:-1] for messages in _conversations() if messages[-2:-1] and messages[-2]["role"] == "assistant"]


def _notes(template: ChatTemplate, render: Renderer, *, adds_bos: bool) -> Iterator[str]:
    text = render([user(_PADDED)])
    if text is not None and _PADDED not in text:
        yield "The model's own template strips the white space around messages; Ollama's templates cannot."
    text = render([user("a"), assistant(_REASONED), user("b")])
    if text is not None and _REASONED not in text:
        yield "The model's own template leaves reasoning out of earlier answers; this one leaves them as they are."
    if "strftime_now" in template.source:
        yield "The model's own template may write the current date; here it is that of the export."
    if "tools" in template.source:
        yield "The model's own template knows tools; this one does not, and Ollama refuses them."
    if adds_bos and not render.writes_bos:
        yield "The GGUF file has a BOS token added to prompts, which the model's own template does not write."
