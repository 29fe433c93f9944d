"""How a chat template writes a conversation, found by rendering marked messages with it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tuneserve.errors import RequestError, TextError
from tuneserve.text import ChatTemplate

Message = dict[str, str]
_SYSTEM, _USER, _USER2, _ANSWER = "qSystemQ", "qFirstQ", "qSecondQ", "qAnswerQ"
_BOUNDARY = re.compile(r".*[\s>\])]", re.DOTALL)


class NotTurnsError(Exception):
    """The template does not write conversations as turns; the message completes "it ..."."""


@dataclass(frozen=True)
class Turns:
    """What stands around the contents of messages.

    ``preamble`` stands before the first turn where there is no system message (or that goes to the last), and
    ``first_open`` (if any) then in place of the first ``user_open``.
    ``system`` says where a system message goes: into a turn of its own, before the contents of the first or of the last
    user's message with ``system_open`` in place of ``user_open``, or nowhere because the template refuses it.
    ``generation`` begins an answer, ``default_system`` is the message that the template puts in for an absent one.
    """

    preamble: str
    first_open: str
    user_open: str
    user_close: str
    assistant_open: str
    assistant_close: str
    generation: str
    system: Literal["turn", "first", "last", "refused"] = "refused"
    system_open: str = ""
    system_close: str = ""
    default_system: str = ""


class Renderer:
    """Renders conversations; None where the template refuses them.

    Where llama.cpp adds a BOS to prompts, the one that the template writes (``writes_bos``) is left out.
    """

    def __init__(self, template: ChatTemplate, *, adds_bos: bool) -> None:
        self._template = template
        self._begin = ""
        bos = template.special_tokens.get("bos_token", "")
        text = self([user(_USER)])
        if text is None:
            raise NotTurnsError("refuses a conversation of one message")
        self.writes_bos = bool(bos) and text.startswith(bos)
        if adds_bos and self.writes_bos:
            self._begin = bos

    def __call__(self, messages: Sequence[Message], *, prompt: bool = True, prefill: bool = False) -> str | None:
        try:
            text = self._template.render(messages, add_generation_prompt=prompt, continue_final_message=prefill)
            text.encode()
        except (RequestError, TextError):
            return None
        except UnicodeEncodeError:
            raise NotTurnsError("writes lone surrogates, which are not Unicode") from None
        if not text.startswith(self._begin):
            raise NotTurnsError("begins only some conversations with its BOS token")
        return text.removeprefix(self._begin)


def user(content: str) -> Message:
    """Return a user's message."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """Return an assistant's message."""
    return {"role": "assistant", "content": content}


def system(content: str) -> Message:
    """Return a system message."""
    return {"role": "system", "content": content}


def find_turns(render: Renderer) -> Turns:
    """Find what ``render`` puts around the contents of messages; the result is still to be checked.

    Raises:
        NotTurnsError: the contents are changed, left out, or surrounded differently from one conversation to the next.
    """
    first, after_first = _pieces(render, [user(_USER)], [_USER])
    same, to_answer, to_user, after_second = _pieces(
        render, [user(_USER), assistant(_ANSWER), user(_USER2)], [_USER, _ANSWER, _USER2]
    )
    if (same, after_second) != (first, after_first):
        raise NotTurnsError("writes the same message differently in longer conversations")
    ended = render([user(_USER)], prompt=False)
    user_close = _common(to_answer, after_first, ended.partition(_USER)[2] if ended is not None else after_first)
    answered = render([user(_USER), assistant(_ANSWER)], prompt=False)
    assistant_close = _common(to_user, answered.partition(_ANSWER)[2] if answered is not None else to_user)
    user_open = to_user.removeprefix(assistant_close)
    begins_alike = first.endswith(user_open)
    turns = Turns(
        preamble=first.removesuffix(user_open) if begins_alike else "",
        first_open="" if begins_alike else first,
        user_open=user_open,
        user_close=user_close,
        assistant_open=to_answer.removeprefix(user_close),
        assistant_close=assistant_close,
        generation=after_first.removeprefix(user_close),
    )
    return _with_system(render, turns)


def _with_system(render: Renderer, turns: Turns) -> Turns:
    text = render([system(_SYSTEM), user(_USER)])
    if text is None or _SYSTEM not in text:
        return turns
    opening, closing, _ = _pieces(render, [system(_SYSTEM), user(_USER)], [_SYSTEM, _USER])
    conversation = [system(_SYSTEM), user(_USER), assistant(_ANSWER), user(_USER2)]
    longer = render(conversation)
    if longer is not None and longer.find(_SYSTEM) > longer.find(_ANSWER):
        _, _, before, closing, _ = _pieces(render, conversation, [_USER, _ANSWER, _SYSTEM, _USER2])
        opening = before.removeprefix(turns.assistant_close)
        return replace(turns, system="last", system_open=opening, system_close=closing)
    if closing.endswith(turns.user_open):
        found = replace(turns, system="turn", system_open=opening, system_close=closing.removesuffix(turns.user_open))
    else:
        found = replace(turns, system="first", system_open=opening, system_close=closing)
    return _with_default(render, found)


def _with_default(render: Renderer, turns: Turns) -> Turns:
    """Find the system message with which a conversation is what it is without any."""
    without = turns.preamble if turns.system == "turn" else turns.first_open or turns.preamble + turns.user_open
    if not (without.startswith(turns.system_open) and without.endswith(turns.system_close)):
        return turns
    default = without[len(turns.system_open) : len(without) - len(turns.system_close)]
    if not default or render([system(default), user(_USER)]) != render([user(_USER)]):
        return turns
    return replace(turns, default_system=default, preamble="", first_open="")


def _pieces(render: Renderer, messages: Sequence[Message], marks: Sequence[str]) -> list[str]:
    text = render(messages)
    if text is None:
        raise NotTurnsError(f"refuses a conversation of {len(messages)} messages")
    if any(text.count(mark) != 1 for mark in marks):
        raise NotTurnsError("does not write each message as it is, once")
    pieces = []
    for mark in marks:
        piece, found, text = text.partition(mark)
        if not found:
            raise NotTurnsError("does not write messages in their order")
        pieces.append(piece)
    return [*pieces, text]


def _common(first: str, *others: str) -> str:
    """Return what all begin with: all of the shortest, or up to where a token may end."""
    length = 0
    while all(len(text) > length for text in (first, *others)) and len({t[length] for t in (first, *others)}) == 1:
        length += 1
    prefix = first[:length]
    if prefix in (*others, first):
        return prefix
    boundary = _BOUNDARY.match(prefix)
    return boundary[0] if boundary else ""
