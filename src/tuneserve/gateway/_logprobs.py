"""Log-probabilities in the two forms that OpenAI's API has."""

from collections.abc import Iterable, Sequence
from typing import Any

from tuneserve.engines.contract import TokenLogprob
from tuneserve.gateway._generate import ScoredToken
from tuneserve.text import TokenBytes, Tokenizer

# What OpenAI sends for a token that cannot come; JSON has no infinity.
_LEAST = -9999.0


class TokenNames:
    """How tokens are shown: as their text, or with ``as_ids`` as ``token_id:5``, as vLLM does."""

    def __init__(self, tokenizer: Tokenizer, as_ids: bool) -> None:
        self._bytes = TokenBytes(tokenizer)
        self._as_ids = as_ids

    def name(self, token: int) -> str:
        """Return what a token is called; bytes that are no whole character show as replacement characters."""
        return f"token_id:{token}" if self._as_ids else self.text(token)

    def text(self, token: int) -> str:
        """Return the text of a token."""
        return self.bytes(token).decode(errors="replace")

    def bytes(self, token: int) -> bytes:
        """Return the bytes of a token, none outside the vocabulary."""
        return self._bytes.of(token) or b""


def chat_logprobs(names: TokenNames, scored: Iterable[ScoredToken], count: int) -> dict[str, Any]:
    """Return the ``logprobs`` of a chat choice with ``count`` alternatives for each token."""

    def entry(token: int, value: float) -> dict[str, Any]:
        return {"token": names.name(token), "logprob": max(value, _LEAST), "bytes": list(names.bytes(token))}

    content = [
        {
            **entry(each.logprob.token_id, each.logprob.logprob),
            "top_logprobs": [entry(*top) for top in each.logprob.top[:count]],
        }
        for each in scored
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    names: TokenNames, scored: Sequence[tuple[TokenLogprob | None, int, int]], count: int
) -> dict[str, Any]:
    """Return the ``logprobs`` of a completion's choice.

    ``scored`` has a log-probability, a token id and an offset in characters for each token; the first of a prompt has
    no log-probability. Among its alternatives is always the token itself, so there may be ``count`` + 1.
    """
    tokens: list[str] = []
    values: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    for logprob, token, _ in scored:
        tokens.append(names.name(token))
        values.append(None if logprob is None else max(logprob.logprob, _LEAST))
        tops.append(None if logprob is None else _alternatives(names, logprob, count))
    return {
        "tokens": tokens,
        "token_logprobs": values,
        "top_logprobs": tops,
        "text_offset": [offset for _, _, offset in scored],
    }


def _alternatives(names: TokenNames, logprob: TokenLogprob, count: int) -> dict[str, float]:
    found: dict[str, float] = {}
    # Several tokens can have the same text; the likeliest is kept.
    for token, value in (*logprob.top[:count], (logprob.token_id, logprob.logprob)):
        found.setdefault(names.name(token), max(value, _LEAST))
    return found


def prompt_logprobs(names: TokenNames, prompt: Sequence[TokenLogprob], count: int) -> list[dict[str, Any] | None]:
    """Return vLLM's ``prompt_logprobs``: of each token but the first, and of ``count`` of the likeliest at its place.

    ``rank`` is 1 for the likeliest; it is null for a token that is none of them, of which the engine does not tell it.
    """
    return [None, *(_ranked(names, each, count) for each in prompt)]


def _ranked(names: TokenNames, logprob: TokenLogprob, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    ranked = [(*each, rank) for rank, each in enumerate(logprob.top[:count], 1)]
    for token, value, rank in (*ranked, (logprob.token_id, logprob.logprob, None)):
        entry = {"logprob": max(value, _LEAST), "rank": rank, "decoded_token": names.text(token)}
        found.setdefault(str(token), entry)
    return found
