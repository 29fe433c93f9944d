"""The list of a tokenizer's tokens, one for each row of the embedding, and what kind each is."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tuneserve.errors import TextError


class Kind(IntEnum):
    """``tokenizer.ggml.token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass
class Tokens:
    """``merged`` are the tokens that merging makes or starts from, by text; the rest were added whole."""

    texts: list[str]
    kinds: list[Kind]
    merged: dict[str, int]


def token_list(definition: dict[str, Any], rows: int, unknown: str | None, path: str) -> Tokens:
    """Return the tokens of a ``tokenizer.json``; ids without a token get an unused one.

    Added tokens beyond the embedding are left out: the model has no row for them.

    Raises:
        TextError: a token of the vocabulary has no row, or cannot stand in a GGUF file.
    """
    vocabulary: dict[str, int] = definition["model"]["vocab"]
    added = {token["content"]: token for token in definition["added_tokens"]}
    merged = {text: number for text, number in vocabulary.items() if text not in added}
    if merged and max(merged.values()) >= rows:
        raise TextError(
            f"the tokenizer in {path} has {max(merged.values()) + 1} tokens and the model {rows} rows of embedding; "
            "use the tokenizer that belongs to the model."
        )
    texts, kinds = [""] * rows, [Kind.UNUSED] * rows
    for text, number in merged.items():
        texts[number], kinds[number] = text, Kind.NORMAL
    for text, token in added.items():
        number = token["id"]
        if number < rows:
            texts[number] = text
            kinds[number] = Kind.CONTROL if token["special"] else Kind.USER_DEFINED
            kinds[number] = Kind.UNKNOWN if text == unknown and definition["model"]["byte_fallback"] else kinds[number]
    taken = set(texts)
    for number, kind in enumerate(kinds):
        if kind == Kind.UNUSED:
            texts[number] = _unused(number, taken)
    return Tokens(texts, kinds, merged)


def check_texts(tokens: Tokens, path: str) -> None:
    """Refuse tokens that llama.cpp would end the process for.

    Raises:
        TextError: a text is empty, occurs twice, or has a NUL in it.
    """
    if any(not text or "\0" in text for text in tokens.texts) or len(set(tokens.texts)) != len(tokens.texts):
        raise TextError(
            f"the tokenizer in {path} has tokens that are empty, equal, or have a NUL in them, which a GGUF file "
            "cannot hold; export as merged_16bit and use an engine that runs the tokenizer itself."
        )


def _unused(number: int, taken: set[str]) -> str:
    text = f"[PAD{number}]"
    while text in taken:
        text = f"[{text}]"
    return text
