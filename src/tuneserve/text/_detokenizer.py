"""Text from tokens as they come."""

from collections.abc import Sequence

from tuneserve.text._tokenizer import Tokenizer

_UNFINISHED = "�"
# An honest character ends within a few tokens; what is longer is not going to become one.
_MAX_HELD = 16


class Detokenizer:
    """Turns the tokens of one sequence into text, holding back characters whose bytes are not all there.

    What it returns, joined, is the text of all its tokens without the special ones. A tokenizer may strip a space at
    the start of what it decodes, so new tokens are decoded behind the ones before them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._shown: list[int] = []
        self._shown_text = ""
        self._held: list[int] = []

    def push(self, ids: Sequence[int]) -> str:
        """Take new tokens and return the text that is final with them."""
        text = ""
        for index in ids:
            if index in self._tokenizer.special_ids:
                continue
            self._held.append(index)
            new = self._new_text()
            if new and (not new.endswith(_UNFINISHED) or len(self._held) >= _MAX_HELD):
                text += new
                self._advance()
        return text

    def finish(self) -> str:
        """Return what was held back."""
        text = self._new_text()
        self._advance()
        return text

    def _new_text(self) -> str:
        return self._tokenizer.decode([*self._shown, *self._held])[len(self._shown_text) :]

    def _advance(self) -> None:
        self._shown, self._held = self._held, []
        self._shown_text = self._tokenizer.decode(self._shown)
