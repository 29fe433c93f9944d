"""Stop strings in a text that comes in pieces."""

from collections.abc import Sequence


class StopStrings:
    """Cuts a text before the stop string that is complete first, however the text is split into pieces.

    Where two are complete at the same character, the longer one counts. Each character costs the same however long the
    stop strings are: each is matched with its failure table (Knuth, Morris and Pratt, 1977).
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._matchers = [_Matcher(stop) for stop in sorted(set(stops), key=len, reverse=True) if stop]
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text; return what is safe to show, and the stop string if one was found, which ends the text."""
        buffer = self._held + text
        for end, character in enumerate(text, len(self._held) + 1):
            complete = [matcher.stop for matcher in self._matchers if matcher.advance(character)]
            if complete:
                self._held = ""
                return buffer[: end - len(complete[0])], complete[0]
        safe = len(buffer) - max((matcher.matched for matcher in self._matchers), default=0)
        self._held = buffer[safe:]
        return buffer[:safe], None

    def finish(self) -> str:
        """Return what was held back because it could have begun a stop string."""
        held, self._held = self._held, ""
        return held


class _Matcher:
    """``matched`` is how much of the beginning of ``stop`` the text so far ends with."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._failure = [0] * len(stop)
        length = 0
        for index in range(1, len(stop)):
            while length and stop[index] != stop[length]:
                length = self._failure[length - 1]
            length += stop[index] == stop[length]
            self._failure[index] = length

    def advance(self, character: str) -> bool:
        """Take one character; return whether the stop string is complete with it."""
        while self.matched and self.stop[self.matched] != character:
            self.matched = self._failure[self.matched - 1]
        self.matched += self.stop[self.matched] == character
        return self.matched == len(self.stop)
