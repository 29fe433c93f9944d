"""From the texts of single tokens, which is all that some engines tell, back to token ids."""

from collections.abc import Iterator

from tuneserve.text import TokenBytes, Tokenizer


class Pieces:
    """The text that each token of a vocabulary stands for, in bytes, because one may end within a character.

    ``tokenizer`` is byte-level BPE or of SentencePiece's kind, as nearly all are.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._ids: dict[bytes, list[int]] = {}
        for index, piece in _pieces(tokenizer):
            self._ids.setdefault(piece, []).append(index)
        self._longest = max(map(len, self._ids), default=0)

    def only(self, piece: bytes) -> int | None:
        """Return the one token of ``piece``; None where there is none, or several."""
        found = self._ids.get(piece, ())
        return found[0] if len(found) == 1 else None

    def first(self, piece: bytes) -> int | None:
        """Return a token of ``piece``; None where there is none."""
        found = self._ids.get(piece, ())
        return found[0] if found else None

    def spell(self, text: bytes) -> list[int] | None:
        """Return tokens of which ``text`` consists, each as long as can be; None where there are none."""
        ids, start = [], 0
        while start < len(text):
            for end in range(min(len(text), start + self._longest), start, -1):
                index = self.first(text[start:end])
                if index is not None:
                    ids.append(index)
                    start = end
                    break
            else:
                return None
        return ids


def _pieces(tokenizer: Tokenizer) -> Iterator[tuple[int, bytes]]:
    """Yield ordinary tokens before special ones, so that a text is the former where it can be."""
    backend, spelled = tokenizer.backend, TokenBytes(tokenizer)
    added = backend.get_added_tokens_decoder()
    ordinary = sorted(backend.get_vocab(with_added_tokens=False).values())
    for index in (*(index for index in ordinary if index not in added), *added):
        if (piece := spelled.of(index)) is not None:
            yield index, piece
