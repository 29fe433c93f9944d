"""``/v1/completions``."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from tuneserve.engines.contract import TokenLogprob
from tuneserve.gateway._generate import Piece, ScoredToken
from tuneserve.gateway._logprobs import TokenNames, completion_logprobs
from tuneserve.gateway._parts import Part, Sample, joined
from tuneserve.gateway._shapes import Event, Json, Shape, Usage
from tuneserve.gateway.chat._extras import Extras, usage_of
from tuneserve.text.tools import Content


@dataclass(frozen=True)
class Echo:
    """A prompt that comes before its continuation: its text, its tokens, and where each begins in the text."""

    text: str
    ids: list[int]
    offsets: list[int]


@dataclass
class CompletionShape(Shape):
    """One completion; all chunks share their id and time.

    ``logprobs`` None is without log-probabilities. ``echoes`` has what comes before each sample, where asked for.
    Without ``continues``, only the prompt is wanted.
    """

    model: str
    names: TokenNames
    extras: Extras
    logprobs: int | None = None
    echoes: list[Echo] | None = None
    continues: bool = True
    id: str = field(default_factory=lambda: f"cmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    ending = b"data: [DONE]\n\n"
    _opened: set[int] = field(default_factory=set)

    def events(self, index: int, sample: Sample, piece: Piece, parts: Sequence[Part]) -> Sequence[Event]:
        """Return the chunks with what is new, first the echo."""
        text, scored, reason = joined(parts, Content), piece.scored, sample.reason
        ids = piece.ids if self.continues else []
        forms = []
        if self.echoes is not None and index not in self._opened:
            forms.append(self._form(index, self.echoes[index].text, self._echoed(index, sample), None))
        if self.continues and (text or scored or (ids and self.extras.token_ids and reason is None)):
            forms.append(self._form(index, text, self._scored(index, scored), None, ids))
            ids = []
        if reason is not None:
            forms.append(self._form(index, "", None, reason, ids))
        if forms and index not in self._opened:
            self._opened.add(index)
            forms[0] |= self.extras.prompt_ids(sample)
        usage = self.extras.usage_so_far(sample)
        return [Event(self._object([form], usage)) for form in forms]

    def end(self, samples: Sequence[Sample], usage: Usage) -> Sequence[Event]:  # noqa: ARG002
        """Return the chunk with the usage, where it was asked for."""
        return [Event(self._object([], usage_of(self._counted(usage))))] if self.extras.usage else []

    def whole(self, samples: Sequence[Sample], usage: Usage) -> Json:
        """Return the completion."""
        choices = [self._choice(index, sample) for index, sample in enumerate(samples)]
        return self._object(choices, usage_of(self._counted(usage)))

    def _counted(self, usage: Usage) -> Usage:
        return usage if self.continues else Usage(usage.prompt, cached=usage.cached)

    def _choice(self, index: int, sample: Sample) -> Json:
        text, scored = "", []
        if self.echoes is not None:
            text, scored = self.echoes[index].text, self._echoed(index, sample)
        if self.continues:
            text, scored = text + sample.text, scored + self._scored(index, sample.scored)
        form = self._form(index, text, scored, sample.reason, sample.ids if self.continues else [])
        return {**form, **self.extras.prompt_ids(sample), **self.extras.scores(self.names, sample)}

    def _echoed(self, index: int, sample: Sample) -> list[tuple[TokenLogprob | None, int, int]]:
        if self.echoes is None or self.logprobs is None:
            return []
        echo = self.echoes[index]
        return list(zip((None, *(sample.prompt or ())), echo.ids, echo.offsets, strict=True))

    def _scored(self, index: int, scored: Sequence[ScoredToken]) -> list[tuple[TokenLogprob | None, int, int]]:
        before = len(self.echoes[index].text) if self.echoes is not None else 0
        return [(each.logprob, each.logprob.token_id, before + each.offset) for each in scored]

    def _form(
        self,
        index: int,
        text: str,
        scored: list[tuple[TokenLogprob | None, int, int]] | None,
        reason: str | None,
        ids: Sequence[int] = (),
    ) -> Json:
        wanted = self.logprobs is not None and scored is not None
        logprobs = completion_logprobs(self.names, scored or [], self.logprobs or 0) if wanted else None
        told = self.extras.ids(ids)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason, **told}

    def _object(self, choices: list[Json], usage: Json | None) -> Json:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "usage": usage,
        }
