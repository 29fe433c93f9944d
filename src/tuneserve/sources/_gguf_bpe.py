"""Byte-level BPE tokenizers of GGUF files, whose ``tokenizer.ggml.pre`` names how text is split before merging.

The patterns are those of the models' own ``tokenizer.json``; the names are llama.cpp's (src/llama-vocab.cpp).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tuneserve.errors import SourceError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_TAIL = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
_WORD = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = rf"{_WORD}{_UPPER}*{_LOWER}+|{_WORD}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_GPT4O = (
    rf"{_WORD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_WORD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_SEED = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
_DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")


@dataclass(frozen=True)
class _Splitting:
    """``patterns`` cut the text in turn, or GPT-2's own where there are none; ``digits`` cuts each digit off first."""

    patterns: tuple[str, ...] = ()
    digits: bool = False
    whole_words: bool = False
    composed: bool = False
    bos: bool = False


_GPT2 = _Splitting()
_DIGITS = _Splitting(digits=True)
_LLAMA3_KIND = _Splitting((_LLAMA3,), whole_words=True, bos=True)
_KINDS = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "a.x-4.0", "mellum", "trillion"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), _LLAMA3_KIND
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), _Splitting((_LLAMA3,))),
    "glm4": _Splitting((_LLAMA3,), whole_words=True),
    "qwen2": _Splitting((_QWEN2,), composed=True),
    **dict.fromkeys(
        ("deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"),
        _Splitting((_QWEN2,)),
    ),
    "tekken": _Splitting((_TEKKEN,), whole_words=True, bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2"), _Splitting((_GPT4O,))),
    "seed-coder": _Splitting((_SEED,)),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), _Splitting(_DEEPSEEK3)),
    "deepseek-coder": _Splitting(_DEEPSEEK_CODER),
}


def bytelevel_tokenizer(kind: object, tokens: Sequence[str], merges: Sequence[str], path: object) -> Tokenizer:
    """Build the tokenizer; its added tokens are still to be added.

    Raises:
        SourceError: text is split in a way that is not known here.
    """
    splitting = _known(kind, path)
    pairs = [_pair(merge, path) for merge in merges]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=splitting.whole_words))
    if splitting.composed:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in splitting.patterns
    ]
    if splitting.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not splitting.patterns))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def begins_with_bos(kind: object, path: object) -> bool:
    """Return whether text gets a BOS where the file does not say."""
    return _known(kind, path).bos


def _known(kind: object, path: object) -> _Splitting:
    splitting = _KINDS.get(kind) if isinstance(kind, str) else None
    if splitting is None:
        raise SourceError(
            f"{path} has a tokenizer that splits text by {str(kind)[:40]!r}, which is not known here; "
            "use the model's original directory."
        )
    return splitting


def _pair(merge: str, path: object) -> tuple[str, str]:
    first, space, second = merge.partition(" ")
    if not (first and space and second):
        raise SourceError(f"{path} has a malformed merge, {merge[:40]!r}, in its tokenizer; download it again.")
    return first, second
