"""What llama.cpp calls the way in which a tokenizer divides text before it merges: ``tokenizer.ggml.pre``.

Told from the rules in ``tokenizer.json``, not from the model's name. llama.cpp's side is in src/llama-vocab.cpp; it has
no normalisers, so that text which is not in NFC becomes other tokens there than with Qwen's own tokenizer.
"""

from collections.abc import Mapping
from typing import Any

from tuneserve.errors import TextError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
# The same language, as the cl100k tokenizer of tiktoken writes it.
_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = rf"{_LOWER}|{_UPPER}|\p{{N}}|{_CASED_TAIL}"
_GPT4O = rf"{_LOWER}{_CONTRACTIONS}?|{_UPPER}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_CASED_TAIL}"

# Steps to names; of those that ignore merges and those that do not.
_NAMES: Mapping[tuple[str, ...], tuple[str | None, str | None]] = {
    (_LLAMA3, "bytes"): ("llama-bpe", "smaug-bpe"),
    (_CL100K, "bytes"): ("llama-bpe", "smaug-bpe"),
    (_TEKKEN, "bytes"): ("tekken", None),
    (_GPT4O, "bytes"): (None, "gpt-4o"),
    (_QWEN2, "bytes"): (None, "qwen2"),
    (_QWEN35, "bytes"): (None, "qwen35"),
    ("words",): (None, "gpt-2"),
    ("digits", "words"): (None, "smollm"),
}


def pretokenizer_names(definition: Mapping[str, Any], path: str) -> tuple[str | None, str | None]:
    """Return llama.cpp's name for the pre-tokenizer of a byte-level BPE ``tokenizer.json``.

    Returns:
        The name under which whole words of the vocabulary are taken without merging, and the one under which they are
        not; at least one of the two.

    Raises:
        TextError: llama.cpp has no such pre-tokenizer, or the tokenizer changes text before it.
    """
    normalizer = definition.get("normalizer")
    if (
        normalizer is not None
        and normalizer != {"type": "NFC"}
        and normalizer != {"type": "Sequence", "normalizers": []}
    ):
        raise TextError(
            f"the tokenizer in {path} normalises text with {_kind(normalizer)}, which llama.cpp cannot; "
            "export as merged_16bit and use an engine that runs the tokenizer itself."
        )
    steps = tuple(_steps(definition.get("pre_tokenizer")))
    if steps not in _NAMES:
        shown = ", ".join(step if len(step) <= 60 else f"{step[:60]}..." for step in steps[:4])
        raise TextError(
            f"the tokenizer in {path} divides text by {shown or 'nothing'}, which llama.cpp does not know; "
            "export as merged_16bit and use an engine that runs the tokenizer itself."
        )
    return _NAMES[steps]


def _steps(definition: Any) -> list[str]:
    """Describe each step: the pattern of a split, or a word for what it does, always the same for the same effect."""
    if not isinstance(definition, Mapping):
        return []
    kind = definition.get("type")
    if kind == "Sequence":
        parts = definition.get("pretokenizers")
        return [step for part in parts for step in _steps(part)] if isinstance(parts, list) else ["an empty sequence"]
    if kind == "Digits" and definition.get("individual_digits") is True:
        return ["digits"]
    if kind == "ByteLevel" and definition.get("add_prefix_space") is False:
        return ["words" if definition.get("use_regex", True) is True else "bytes"]
    if kind == "Split":
        pattern = definition.get("pattern")
        matches = (definition.get("behavior"), definition.get("invert"))
        if isinstance(pattern, Mapping) and matches in (("Isolated", False), ("Removed", True)):
            regex = pattern.get("Regex")
            if isinstance(regex, str):
                return ["digits" if regex == r"\p{N}" else regex]
    return [_kind(definition)]


def _kind(definition: Any) -> str:
    return f"{str(definition.get('type') if isinstance(definition, Mapping) else definition)[:40]} with these settings"
