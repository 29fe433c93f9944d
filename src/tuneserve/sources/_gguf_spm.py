"""SentencePiece BPE tokenizers of GGUF files, whose merges follow from the scores of their pieces."""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers

from tuneserve.errors import SourceError

_SPACE = "\u2581"
_NORMAL, _USER_DEFINED = 1, 4
# The longest pieces of known models are 31 characters; all divisions of each are looked at.
_MAX_PIECE = 256


def sentencepiece_tokenizer(
    tokens: Sequence[str],
    types: Sequence[int],
    scores: Sequence[float],
    *,
    space_prefix: bool,
    by_position: bool,
    unknown: str | None,
    path: object,
) -> Tokenizer:
    """Build the tokenizer as Transformers' ``tokenizer.json`` of such models has it, without its added tokens.

    Args:
        tokens: the pieces, with :data:`_SPACE` for spaces.
        types: ``tokenizer.ggml.token_type``.
        scores: higher merges first.
        space_prefix: whether text gets a space before it.
        by_position: merge in the order of the pieces instead (Gemma, whose scores do not follow it).
        unknown: the token for what has no other, where bytes have none.
        path: of the file, for errors.

    Raises:
        SourceError: a piece is longer than any model's.
    """
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges: list[tuple[float, int, str, str]] = []
    for index, token in enumerate(tokens):
        if types[index] not in (_NORMAL, _USER_DEFINED):
            continue
        if len(token) > _MAX_PIECE:
            raise SourceError(f"{path} has a token of {len(token)} characters in its tokenizer; download it again.")
        rank = float(index) if by_position else -scores[index]
        divisions = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        merges += [(rank, index, a, b) for a, b in divisions if a in vocabulary and b in vocabulary]
    merges.sort(key=lambda merge: (merge[0], merge[1], vocabulary[merge[2]], vocabulary[merge[3]]))
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[(a, b) for _, _, a, b in merges],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)),
        )
    )
    replace = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replace]) if space_prefix else replace
    steps: list[decoders.Decoder] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if space_prefix else steps)
    return tokenizer


def respelled(token: str) -> str:
    """Return a piece of spaces alone as SentencePiece spells it; llama.cpp's converter spells those out."""
    return token.replace(" ", _SPACE) if token and not token.strip(" ") else token
