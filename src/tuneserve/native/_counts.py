"""Which tokens a sequence has, and how often."""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


class TokenCounts:
    """Distinct tokens in the order in which they came, kept up to date token by token."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._places: dict[int, int] = {}
        self._ids = array("q")
        self._counts = array("q")
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """Count one more."""
        place = self._places.setdefault(token, len(self._ids))
        if place == len(self._ids):
            self._ids.append(token)
            self._counts.append(0)
        self._counts[place] += 1

    def with_more(self, tokens: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the distinct tokens and their counts as they would be after ``tokens``."""
        for token in tokens:
            self.add(token)
        ids, counts = np.array(self._ids), np.array(self._counts)
        for token in reversed(tokens):
            self._take_back(token)
        return ids, counts

    def _take_back(self, token: int) -> None:
        place = self._places[token]
        self._counts[place] -= 1
        if not self._counts[place]:
            # It was the last to come, so it is the last in line.
            del self._places[token], self._ids[place], self._counts[place]
