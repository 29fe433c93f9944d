"""From the texts of single tokens, which is all that some engines tell, back to token ids."""

from collections.abc import Iterator

from tuneserve.text import Tokenizer

_SPACE = "\u2581"


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
    backend = tokenizer.backend
    is_byte_level = backend.decoder is not None and b'"ByteLevel"' in backend.decoder.__getstate__()
    alphabet = _byte_alphabet() if is_byte_level else None
    added = backend.get_added_tokens_decoder()
    for token, index in sorted(backend.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1]):
        if index in added:
            continue
        if alphabet is not None:
            if all(character in alphabet for character in token):
                yield index, bytes(alphabet[character] for character in token)
        elif index in tokenizer.byte_ids:
            yield index, bytes.fromhex(token[3:5])
        else:
            yield index, token.replace(_SPACE, " ").encode()
    for index, special in added.items():
        yield index, special.content.encode()


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of byte-level BPE stands for, as GPT-2 assigned them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(hidden)}
