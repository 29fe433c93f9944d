"""BPE as SentencePiece trains it (Llama 2, Mistral, Gemma, Phi-3) as GGUF metadata.

A ``tokenizer.json`` ranks pairs, llama.cpp scores tokens and joins whatever two neighbours make the best one. Both are
the same where all pairs that make a token are merges, ranked together, as in every conversion of a SentencePiece model.
"""

import re
from collections.abc import Mapping
from typing import Any

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


def sentencepiece_metadata(definition: dict[str, Any], tokens: Tokens, path: str) -> dict[str, Value]:
    """Return the vocabulary with scores, and whether a space goes before a text.

    Where the tokenizer puts that space before the first text only, llama.cpp also does so after each special token.

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
        "tokenizer.ggml.add_space_prefix": _space_prefix(definition, path),
    }


def _space_prefix(definition: Mapping[str, Any], path: str) -> bool:
    normalizer, pre_tokenizer = definition.get("normalizer"), definition.get("pre_tokenizer")
    if normalizer == {"type": "Sequence", "normalizers": [_PREPEND, _ESCAPE]} and pre_tokenizer is None:
        return True
    if normalizer == _ESCAPE and pre_tokenizer in (None, _NO_SPLIT):
        return False
    if normalizer is None and isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "Metaspace":
        scheme = pre_tokenizer.get("prepend_scheme")
        if pre_tokenizer.get("replacement") == _SPACE and pre_tokenizer.get("split") is False:
            return bool(scheme != "never")
    raise _unlike(path, "it changes or divides text before merging in its own way")


def _scores(definition: dict[str, Any], tokens: Tokens, path: str) -> list[float]:
    pairs = merge_pairs(definition)
    order: dict[str, int] = {}
    last = ""
    for left, right in pairs:
        made = left + right
        if made != last and made in order and made in tokens.merged:
            raise _unlike(path, f"its merges into {made[:30]!r} are not ranked together")
        order.setdefault(made, len(order))
        last = made
    known, vocabulary = set(pairs), definition["model"]["vocab"]
    for text in tokens.merged:
        for cut in range(1, len(text)):
            pair = text[:cut], text[cut:]
            if pair[0] in vocabulary and pair[1] in vocabulary and pair not in known and not _BYTE.fullmatch(text):
                raise _unlike(path, f"it never merges {pair[0][:30]!r} and {pair[1][:30]!r}")
    scores = [_LOWEST] * len(tokens.texts)
    for text, rank in order.items():
        if (number := vocabulary.get(text)) is not None and number < len(scores):
            scores[number] = -float(rank)
    return scores


def _unlike(path: str, reason: str) -> TextError:
    return TextError(
        f"the tokenizer in {path} is not what llama.cpp runs as SentencePiece ({reason}); "
        "export as merged_16bit and use an engine that runs the tokenizer itself."
    )
