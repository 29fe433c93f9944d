"""BPE as SentencePiece trains it (Llama 2, Mistral, Gemma, Phi-3) as GGUF metadata.

A ``tokenizer.json`` ranks pairs, llama.cpp scores tokens and joins whatever two neighbours make the best one. Both are
the same where all pairs that make a token are merges, ranked together, as in every conversion of a SentencePiece model.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers

from tuneserve.artifacts.gguf._bytelevel import merge_pairs
from tuneserve.artifacts.gguf._header import Value
from tuneserve.artifacts.gguf._tokens import Kind, Tokens, check_texts
from tuneserve.errors import TextError

_SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_ESCAPE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PREPEND = {"type": "Prepend", "prepend": _SPACE}
# Nothing to divide is left once spaces are escaped.
_NO_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
_LOWEST = -1_000_000.0
_MAX_RUN = 200


def sentencepiece_metadata(definition: dict[str, Any], tokens: Tokens, path: str, *, chats: bool) -> dict[str, Value]:
    """Return the vocabulary with scores, and whether a space goes before a text.

    A tokenizer may put that space only where a text begins, llama.cpp does so after each special token or never. A
    conversation begins with a special token and so has none: never, then, if the model ``chats``.

    Raises:
        TextError: llama.cpp would divide text into other tokens.
    """
    scores = _scores(definition, tokens, path)
    for number, (text, kind) in enumerate(zip(tokens.texts, tokens.kinds, strict=True)):
        if _BYTE.fullmatch(text):
            tokens.kinds[number] = Kind.BYTE
        elif kind == Kind.USER_DEFINED:
            # llama.cpp looks for these before it escapes spaces.
            tokens.texts[number] = text.replace(_SPACE, " ")
    check_texts(tokens, path)
    if tokens.kinds.count(Kind.BYTE) != 256:
        raise _unlike(path, "it lacks tokens for some bytes")
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens.texts,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [int(kind) for kind in tokens.kinds],
        "tokenizer.ggml.add_space_prefix": _space_prefix(definition, path, chats),
    }


def _space_prefix(definition: Mapping[str, Any], path: str, chats: bool) -> bool:
    normalizer, pre_tokenizer = definition.get("normalizer"), definition.get("pre_tokenizer")
    if normalizer == {"type": "Sequence", "normalizers": [_PREPEND, _ESCAPE]} and pre_tokenizer is None:
        return True
    if normalizer == _ESCAPE and pre_tokenizer in (None, _NO_SPLIT):
        return False
    if normalizer is None and isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "Metaspace":
        scheme, escaped = pre_tokenizer.get("prepend_scheme"), pre_tokenizer.get("replacement") == _SPACE
        if scheme in ("first", "never") and escaped and pre_tokenizer.get("split") is False:
            return scheme == "first" and not chats
    raise _unlike(path, "it changes or divides text before merging in its own way")


def _scores(definition: dict[str, Any], tokens: Tokens, path: str) -> list[float]:
    pairs, vocabulary = merge_pairs(definition), definition["model"]["vocab"]
    known = set(pairs)
    for text in tokens.merged:
        for cut in range(1, len(text)):
            pair = text[:cut], text[cut:]
            if pair[0] in vocabulary and pair[1] in vocabulary and pair not in known and not _BYTE.fullmatch(text):
                raise _unlike(path, f"it never merges {pair[0][:30]!r} and {pair[1][:30]!r}")
    by_text: dict[str, float] = {}
    for number, group in enumerate(_ranked_together([left + right for left, right in pairs])):
        by_text |= dict.fromkeys(group, -float(number))
        merged = [text for text in group if text in tokens.merged]
        if len(merged) > 1 and not _are_runs(merged, definition):
            raise _unlike(path, f"its merges into {merged[0][:30]!r} and {merged[1][:30]!r} are ranked in between")
    scores = [_LOWEST] * len(tokens.texts)
    for text, score in by_text.items():
        if (number := vocabulary.get(text, len(scores))) < len(scores):
            scores[number] = score
    return scores


def _ranked_together(made: list[str]) -> Iterator[list[str]]:
    """Divide what merges make, in their order, into the smallest groups that share no ranks."""
    last = {text: rank for rank, text in enumerate(made)}
    group: dict[str, None] = {}
    end = 0
    for rank, text in enumerate(made):
        group[text] = None
        end = max(end, last[text])
        if rank == end:
            yield list(group)
            group.clear()


def _are_runs(texts: list[str], definition: dict[str, Any]) -> bool:
    """Return whether ``texts`` repeat one character and may all score the same, as the runs of spaces in Llama 2.

    Of equals llama.cpp joins the leftmost; whether the ranks do the same is tried out.
    """
    character = texts[0][0]
    if {*"".join(texts)} != {character} or character not in definition["model"]["vocab"]:
        return False
    pairs = merge_pairs(definition)
    runs = [(left, right) for left, right in pairs if {*left, *right} == {character}]
    names = {character, *(left + right for left, right in runs)}
    model = tokenizers.models.BPE(vocab={text: number for number, text in enumerate(sorted(names))}, merges=runs)
    longest = 2 * max(map(len, names)) + 2
    return longest < _MAX_RUN and all(
        [token.value for token in model.tokenize(character * count)] == _leftmost_first(character * count, names)
        for count in range(1, longest)
    )


def _leftmost_first(text: str, names: set[str]) -> list[str]:
    parts = list(text)
    while (found := next((i for i in range(len(parts) - 1) if parts[i] + parts[i + 1] in names), None)) is not None:
        parts[found : found + 2] = [parts[found] + parts[found + 1]]
    return parts


def _unlike(path: str, reason: str) -> TextError:
    return TextError(
        f"the tokenizer in {path} is not what llama.cpp runs as SentencePiece ({reason}); "
        "export as merged_16bit and use an engine that runs the tokenizer itself."
    )
