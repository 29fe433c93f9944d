"""Text from tokens as they come."""

from collections.abc import Sequence

from tuneserve.text._tokenizer import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_WINDOW = 16
# An unfinished character is at most three bytes, and so at most three tokens.
_KEPT = 8


class Detokenizer:
    """Turns the tokens of one sequence into text, holding back what later tokens may change.

    What it returns, joined, is ``tokenizer.decode`` of all its tokens. A decoder may treat the first token of a text in
    its own way, so new tokens are decoded behind a window of those before them, of which ``_shown`` characters have
    been returned. Two things are held back: an unfinished character, which shows as one replacement character at the
    end; and a run of byte tokens (``<0xE4>``), which the decoder takes as a whole, until a token of another kind.

    Special tokens have no text, but for those of ``visible``, whose text comes between that of the others; it ends
    what is held back.
    """

    def __init__(self, tokenizer: Tokenizer, visible: frozenset[int] = frozenset()) -> None:
        self._tokenizer = tokenizer
        self._visible = visible
        self._window: list[int] = []
        self._shown = 0

    def push(self, ids: Sequence[int]) -> str:
        """Take new tokens and return the text that is final with them."""
        text = ""
        for index in ids:
            if index in self._visible:
                decoded = self._tokenizer.decode(self._window)
                text += decoded[self._shown :] + (self._tokenizer.backend.id_to_token(index) or "")
                self._shown = max(self._shown, len(decoded))
                continue
            if index in self._tokenizer.special_ids or index >= self._tokenizer.vocab_size:
                continue
            self._window.append(index)
            if index in self._tokenizer.byte_ids:
                continue
            decoded = self._tokenizer.decode(self._window)
            final = self._final(decoded)
            text += decoded[self._shown : final]
            self._shown = max(self._shown, final)
            if len(self._window) > _MAX_WINDOW:
                self._window = self._window[-_KEPT:]
                self._shown = self._final(self._tokenizer.decode(self._window))
        return text

    def finish(self) -> str:
        """Return what was held back."""
        text = self._tokenizer.decode(self._window)[self._shown :]
        self._window, self._shown = [], 0
        return text

    @staticmethod
    def _final(text: str) -> int:
        return len(text) - text.endswith(_REPLACEMENT)
