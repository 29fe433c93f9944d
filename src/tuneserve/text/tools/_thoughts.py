"""Thoughts set apart from the answer, as they come."""

from tuneserve.text.tools._calls import held_back
from tuneserve.text.tools._events import Content, Reasoning
from tuneserve.text.tools._format import ReasoningFormat


class ThoughtScanner:
    """Splits an output into the thoughts it begins with and the answer; blanks beside the markers belong to neither."""

    def __init__(self, form: ReasoningFormat, opened: bool) -> None:
        self._form = form
        self._state = "inside" if opened else "before"
        self._fresh = True
        self._held = ""
        self._blanks: list[str] = []

    def push(self, text: str) -> list[Reasoning | Content]:
        """Take more of the output and return what is final with it."""
        if self._state == "after":
            return [Content(text)] if text else []
        text, self._held = self._held + text, ""
        if self._state == "before":
            return self._before(text)
        return self._inside(text) if self._state == "inside" else self._behind(text)

    def finish(self) -> list[Reasoning | Content]:
        """Return what was held back."""
        text = "".join(self._blanks) + self._held
        self._held, self._blanks = "", []
        if not text or self._state == "behind":
            return []
        return [Reasoning(text)] if self._state == "inside" else [Content(text)]

    def _before(self, text: str) -> list[Reasoning | Content]:
        start, found = self._form.start, text.lstrip()
        self._blanks.append(text[: len(text) - len(found)])
        if found.startswith(start):
            self._state, self._blanks = "inside", []
            return self._inside(found.removeprefix(start))
        if start.startswith(found):
            self._held = found
            return []
        self._state = "after"
        content, self._blanks = "".join(self._blanks) + found, []
        return [Content(content)]

    def _inside(self, text: str) -> list[Reasoning | Content]:
        body, end, rest = text.partition(self._form.end)
        if not end:
            kept = len(text) - held_back(text, (self._form.end,))
            body, self._held = text[:kept], text[kept:]
        if self._fresh:
            body = body.lstrip()
            self._fresh = not body
        said = body.rstrip()
        events: list[Reasoning | Content] = []
        if said:
            events.append(Reasoning("".join(self._blanks) + said))
            self._blanks = []
        self._blanks.append(body[len(said) :])
        if end:
            self._state, self._blanks = "behind", []
            events += self._behind(rest)
        return events

    def _behind(self, text: str) -> list[Reasoning | Content]:
        text = text.lstrip()
        if not text:
            return []
        self._state = "after"
        return [Content(text)]
