"""Which tokens make up a character that llama-server only sends once it is whole.

Its stream has no event for a token that ends in the middle of a character: the event of the token that completes it
has the text of all, but the id of the last alone. The others follow from the text, because they are pieces of it.
"""

import re
from collections.abc import Sequence

from tuneserve.checkpoint import GgufFile
from tuneserve.errors import InputError
from tuneserve.text import byte_alphabet

_CONTROL, _UNKNOWN, _USER_DEFINED, _BYTE = 3, 2, 4, 6
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
_SPACE = "\u2581"


class Pieces:
    """The bytes of the tokens in the vocabulary of ``file``.

    Raises:
        InputError: it has none, or of another kind than byte-level BPE and SentencePiece.
    """

    def __init__(self, file: GgufFile) -> None:
        tokens, model = file.metadata.get("tokenizer.ggml.tokens"), file.metadata.get("tokenizer.ggml.model")
        types = file.metadata.get("tokenizer.ggml.token_type")
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise InputError(f"{file.paths[0]} has no vocabulary; export the model again.")
        if model not in ("gpt2", "llama"):
            raise InputError(
                f"{file.paths[0]} has a tokenizer of the kind {str(model)[:40]!r}; only gpt2 and llama are served."
            )
        self._tokens: Sequence[str] = tokens
        self._types: Sequence[object] = (
            types if isinstance(types, list) and len(types) == len(tokens) else [1] * len(tokens)
        )
        self._bytes_of = byte_alphabet() if model == "gpt2" else None
        pieces = (self.piece(index) for index in range(len(tokens)))
        self._fragments: dict[bytes, int] = {}
        self.whole = 0
        for index, piece in enumerate(pieces):
            if _is_fragment(piece):
                self._fragments.setdefault(piece, index)
            elif piece:
                self.whole = index
        self._longest = max(map(len, self._fragments), default=0)

    def __len__(self) -> int:
        return len(self._tokens)

    def piece(self, index: int) -> bytes:
        """Return what the token adds to the text, as llama.cpp has it: nothing for a control token."""
        token, kind = self._tokens[index], self._types[index]
        if kind in (_CONTROL, _UNKNOWN):
            return b""
        if kind == _USER_DEFINED:
            return token.encode()
        if self._bytes_of is not None:
            table = self._bytes_of
            return bytes(table[character] for character in token) if table.keys() >= set(token) else token.encode()
        if kind == _BYTE and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(byte[1])
        return token.replace(_SPACE, " ").encode()

    def split(self, text: bytes, count: int, last: int) -> list[int] | None:
        """Return the ``count`` tokens, of which ``last`` is the last, that make up ``text``; None where none do.

        Where there are several ways, the pieces are as long as can be from the left, as a tokenizer would have them.
        """
        end = self.piece(last)
        if not text.endswith(end):
            return None
        found = self._fill(text[: len(text) - len(end)], count - 1)
        return None if found is None else [*found, last]

    def _fill(self, text: bytes, count: int) -> list[int] | None:
        if count == 0:
            return None if text else []
        for length in range(min(self._longest, len(text)), 0, -1):
            index = self._fragments.get(text[:length])
            if index is not None and (rest := self._fill(text[length:], count - 1)) is not None:
                return [index, *rest]
        return None


def _is_fragment(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return True
    return False
