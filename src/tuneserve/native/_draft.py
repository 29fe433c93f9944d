"""Guessing the tokens to come from those that are there.

This is prompt lookup decoding (https://github.com/apoorvumang/prompt-lookup-decoding).
"""

from array import array

# The longest run of last tokens that is looked for earlier on, and the shortest that is taken for a sign.
_LONGEST, _SHORTEST = 4, 2
# How many earlier places of the shortest run are compared.
_PLACES = 16
# How many tokens pass without a guess after guesses have failed.
_PAUSE = 16


class Drafter:
    """Guesses what follows the tokens of one sequence from what followed the same tokens earlier.

    It guesses fewer tokens when they turn out wrong, down to none for a while, and more when they come true.

    Args:
        tokens: those of the sequence so far.
        most: tokens in one guess, at least 1.
        limit: length of the sequence that no guess goes beyond; the token that follows a guess has a place as well.
    """

    def __init__(self, tokens: list[int], most: int, limit: int) -> None:
        self._most = most
        self._limit = limit
        self._length = most
        self._pause = 0
        # For each place, where the two tokens before it stood before that; the last such place by the two tokens.
        self._before = array("i")
        self._last: dict[tuple[int, int], int] = {}
        self._note(tokens)

    def propose(self, tokens: list[int], most: int) -> list[int]:
        """Return what may follow ``tokens``, nothing where there is no sign; at most ``most`` tokens."""
        self._note(tokens)
        count = min(self._length, most, self._limit - len(tokens) - 1)
        if self._pause > 0:
            self._pause -= 1
            return []
        place = self._last.get((tokens[-2], tokens[-1]), -1) if count > 0 and len(tokens) > _SHORTEST else -1
        best, best_length = -1, 0
        for _ in range(_PLACES):
            if place < 0 or best_length == _LONGEST:
                break
            length = _common_end(tokens, place)
            if length > best_length:
                best, best_length = place, length
            place = self._before[place]
        return tokens[best : best + count] if best >= 0 else []

    def learn(self, proposed: int, true: int) -> None:
        """Note how many of the tokens that were proposed came true, the first ones."""
        if true == proposed:
            self._length = min(self._most, 2 * self._length)
        elif 2 * true < proposed:
            self._length //= 2
            if not self._length:
                self._length, self._pause = 1, _PAUSE

    def _note(self, tokens: list[int]) -> None:
        for place in range(len(self._before), len(tokens)):
            before = -1
            if place >= _SHORTEST:
                pair = (tokens[place - 2], tokens[place - 1])
                before = self._last.get(pair, -1)
                self._last[pair] = place
            self._before.append(before)


def _common_end(tokens: list[int], place: int) -> int:
    """Return how many tokens before ``place`` are the last of all, up to the longest run."""
    length = 0
    while length < min(_LONGEST, place) and tokens[place - 1 - length] == tokens[-1 - length]:
        length += 1
    return length
