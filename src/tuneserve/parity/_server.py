"""What a server says of its next-token probabilities, in the forms that servers say it.

Prompts go as token ids to ``/v1/completions``. Where ``echo`` gives the probabilities of all of a prompt's positions
(vLLM, SGLang) one request does for each prompt, else (llama-server) one for each of a few prefixes of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tuneserve.client import ApiError, OpenAIClient, RawResponse
from tuneserve.errors import InputError

_PATH = "/v1/completions"
# The most that OpenAI, and what vLLM and others allow unless they are told otherwise.
_COUNTS = (20, 5)
_PREFIXES = 4
_TOKEN_ID = "token_id:"  # noqa: S105


@dataclass(frozen=True)
class ServedPosition:
    """The likeliest tokens after ``position`` of the prompt ``prompt``: by id, or by text, to log-probability."""

    prompt: int
    position: int
    top: Mapping[int | str, float]


class _Entry(msgspec.Struct, frozen=True):
    logprob: float
    token: str = ""
    id: int | None = None


class _Content(msgspec.Struct, frozen=True):
    top_logprobs: list[_Entry] = []


class _Logprobs(msgspec.Struct, frozen=True):
    top_logprobs: list[dict[str, float] | None] | None = None
    content: list[_Content] | None = None


class _Choice(msgspec.Struct, frozen=True):
    logprobs: _Logprobs | None = None


class _Answer(msgspec.Struct, frozen=True):
    choices: list[_Choice]


def served_positions(client: OpenAIClient, model: str, prompts: Sequence[Sequence[int]]) -> list[ServedPosition]:
    """Return the server's likeliest next tokens at positions of the ``prompts``.

    Raises:
        InputError: the server gives no log-probabilities.
        TransportError: there was no answer.
    """
    refusal = ""
    for count in _COUNTS:
        for whole in (True, False):
            found, refusal = _ask(client, model, prompts[:1], count, whole=whole)
            if found:
                found, refusal = _ask(client, model, prompts, count, whole=whole)
                if found:
                    return found
    raise InputError(
        f"the server at {client.url} gives no log-probabilities for token ids ({refusal}), so its divergence cannot be "
        "measured; check the files that it serves, or serve them with vLLM, SGLang or llama-server meanwhile."
    )


def _ask(
    client: OpenAIClient, model: str, prompts: Sequence[Sequence[int]], count: int, *, whole: bool
) -> tuple[list[ServedPosition], str]:
    found = []
    for index, prompt in enumerate(prompts):
        for length in [len(prompt)] if whole else _lengths(len(prompt)):
            body: dict[str, Any] = {
                "model": model,
                "prompt": list(prompt[:length]),
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": count,
            }
            # Only vLLM has the second, without which it names tokens by their text.
            if whole:
                body |= {"echo": True, "return_tokens_as_token_ids": True}
            answer = client.post(_PATH, body)
            tops = _tops(answer)
            if tops is None:
                return [], _reason(answer)
            if not whole:
                found.append(ServedPosition(index, length - 1, tops[-1]))
            elif len(tops) == length + 1:
                found += [ServedPosition(index, position - 1, tops[position]) for position in range(1, length + 1)]
            else:
                return [], "echo brings none for the prompt"
    return [position for position in found if position.top], "they are empty"


def _lengths(length: int) -> list[int]:
    return sorted({max(1, length * part // _PREFIXES) for part in range(1, _PREFIXES + 1)})


def _tops(answer: RawResponse) -> list[dict[int | str, float]] | None:
    if answer.status != 200:
        return None
    try:
        logprobs = msgspec.json.decode(answer.body, type=_Answer).choices[0].logprobs
    except (msgspec.DecodeError, IndexError, UnicodeError, RecursionError):
        return None
    if logprobs is not None and logprobs.content:
        return [dict(_by_token(content.top_logprobs)) for content in logprobs.content]
    if logprobs is not None and logprobs.top_logprobs:
        return [{_key(token): value for token, value in (top or {}).items()} for top in logprobs.top_logprobs]
    return None


def _by_token(entries: Sequence[_Entry]) -> Iterator[tuple[int | str, float]]:
    for entry in entries:
        yield (_key(entry.token) if entry.id is None else entry.id), entry.logprob


def _key(token: str) -> int | str:
    number = token.removeprefix(_TOKEN_ID)
    return int(number) if number != token and number.isascii() and number.isdecimal() else token


def _reason(answer: RawResponse) -> str:
    if answer.status < 400:
        return "its answer has none"
    try:
        message = msgspec.json.decode(answer.body, type=dict[str, Any])["error"]["message"]
    except (msgspec.DecodeError, KeyError, TypeError, UnicodeError, RecursionError):
        message = "no explanation"
    error = ApiError(answer.status, " ".join(str(message).split())[:200])
    return f"status {answer.status}: {error.message.rstrip('.')}"
