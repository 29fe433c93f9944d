"""Byte-level BPE (GPT-2, Llama 3, Qwen, ...) as GGUF metadata."""

from collections.abc import Iterable
from typing import Any

import tokenizers

from tuneserve.artifacts.gguf._header import Value
from tuneserve.artifacts.gguf._pretokenizer import pretokenizer_names
from tuneserve.artifacts.gguf._tokens import Tokens, check_texts
from tuneserve.errors import TextError


def bytelevel_metadata(definition: dict[str, Any], tokens: Tokens, path: str) -> dict[str, Value]:
    """Return the vocabulary, its merges and the name of the pre-tokenizer.

    Raises:
        TextError: llama.cpp would divide text into other tokens.
    """
    check_texts(tokens, path)
    merges = merge_pairs(definition)
    if not merges or any(" " in part for pair in merges for part in pair):
        raise TextError(
            f"the tokenizer in {path} has no merges or has spaces in them, which a GGUF file cannot hold; "
            "save it again from the base model."
        )
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pretokenizer(definition, merges, tokens.merged, path),
        "tokenizer.ggml.tokens": tokens.texts,
        "tokenizer.ggml.token_type": [int(kind) for kind in tokens.kinds],
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
    }


def merge_pairs(definition: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the merges in the order of their rank."""
    return [(left, right) for left, right in definition["model"]["merges"]]


def _pretokenizer(definition: dict[str, Any], merges: list[tuple[str, str]], merged: Iterable[str], path: str) -> str:
    whole_words, merged_words = pretokenizer_names(definition, path)
    ignores_merges = definition["model"].get("ignore_merges", False)
    name = whole_words if ignores_merges else merged_words
    if name is None and _same_either_way(definition["model"]["vocab"], merges, merged):
        name = merged_words if ignores_merges else whole_words
    if name is None:
        raise TextError(
            f"the tokenizer in {path} {'takes' if ignores_merges else 'does not take'} whole words without merging, "
            "and llama.cpp has its pre-tokenizer the other way only; use an engine that runs the tokenizer itself."
        )
    return name


def _same_either_way(vocabulary: dict[str, int], merges: list[tuple[str, str]], merged: Iterable[str]) -> bool:
    """Return whether merging finds each token by itself, so that looking it up first changes nothing."""
    model = tokenizers.models.BPE(vocab=vocabulary, merges=merges)
    return all(len(model.tokenize(text)) == 1 for text in merged)
