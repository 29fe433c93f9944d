"""Stop strings in a text that comes in pieces."""

from collections.abc import Sequence


class StopStrings:
    """Cuts a text before the first stop string that is complete in it, however the text is split into pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text; return what is safe to show, and the stop string if one was found, which ends the text."""
        buffer = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := buffer.find(stop)) >= 0]
        if found:
            _, start, stop = min(found)
            self._held = ""
            return buffer[:start], stop
        kept = self._possible_beginning(buffer)
        self._held = buffer[len(buffer) - kept :]
        return buffer[: len(buffer) - kept], None

    def finish(self) -> str:
        """Return what was held back because it could have begun a stop string."""
        held, self._held = self._held, ""
        return held

    def _possible_beginning(self, buffer: str) -> int:
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(buffer)), 0, -1):
            if any(stop.startswith(buffer[-length:]) for stop in self._stops):
                return length
        return 0
