"""The bytes that single tokens stand for, because a token may end within a character."""

from functools import cached_property

from tuneserve.text._tokenizer import Tokenizer

_SPACE = "\u2581"


class TokenBytes:
    """The tokens of byte-level BPE, or of SentencePiece's kind, as nearly all tokenizers are, in bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {index: token.content for index, token in tokenizer.backend.get_added_tokens_decoder().items()}

    def of(self, index: int) -> bytes | None:
        """Return the bytes of a token; None outside the vocabulary, or where it stands for none."""
        if index in self._added:
            return self._added[index].encode()
        token: str | None = self._tokenizer.backend.id_to_token(index) if index >= 0 else None
        if token is None:
            return None
        if self._alphabet is not None:
            known = all(character in self._alphabet for character in token)
            return bytes(self._alphabet[character] for character in token) if known else None
        if index in self._tokenizer.byte_ids:
            return bytes.fromhex(token[3:5])
        return token.replace(_SPACE, " ").encode()

    @cached_property
    def _alphabet(self) -> dict[str, int] | None:
        decoder = self._tokenizer.backend.decoder
        is_byte_level = decoder is not None and b'"ByteLevel"' in decoder.__getstate__()
        return byte_alphabet() if is_byte_level else None


def byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of byte-level BPE stands for, as GPT-2 assigned them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(hidden)}
