"""Token sequences that must not appear, as Transformers' ``NoBadWordsLogitsProcessor`` has them."""

from collections.abc import Iterable, Sequence


class BadWords:
    """Bans the last token of a word wherever the tokens end with what comes before it, in the prompt or after."""

    def __init__(self, words: Iterable[tuple[int, ...]]) -> None:
        self._always: list[int] = []
        # By the token before the last, so that a step only looks at words that could be meant.
        self._after: dict[int, list[tuple[list[int], int]]] = {}
        for word in words:
            if len(word) == 1:
                self._always.append(word[0])
            else:
                self._after.setdefault(word[-2], []).append((list(word[:-1]), word[-1]))

    def always(self) -> list[int] | None:
        """Return the tokens that may never follow; None where it depends on what comes before."""
        return None if self._after else self._always

    def banned(self, tokens: Sequence[int]) -> list[int]:
        """Return the tokens that may not follow ``tokens``."""
        banned = list(self._always)
        for begin, end in self._after.get(tokens[-1], ()):
            if tokens[-len(begin) :] == begin:
                banned.append(end)
        return banned
