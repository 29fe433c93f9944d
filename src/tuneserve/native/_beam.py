"""Beam search over an engine, with the rules of Transformers.

Each step asks for one token after each beam, with the log-probabilities of the likeliest; the cache holds what the
beams have in common.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tuneserve.engines.contract import GenerationRequest, SamplingParams, TokenLogprob
from tuneserve.errors import RequestError
from tuneserve.native._engine import NativeCore
from tuneserve.native._offline import outputs

_MOST_LOGPROBS = 100


@dataclass(frozen=True)
class Beam:
    """One way to go on; ``score`` is the sum of its log-probabilities over its length to the ``length_penalty``."""

    token_ids: list[int]
    score: float


@dataclass(frozen=True)
class BeamRules:
    """How to search.

    ``early_stopping`` True ends when there are ``width`` finished beams, False when the best that still runs is worse
    than the worst finished.
    """

    width: int
    max_tokens: int
    length_penalty: float
    early_stopping: bool
    ends: frozenset[int]

    @property
    def candidates(self) -> int:
        """Continuations looked at in each step: enough that ``width`` of them do not end."""
        return max(2, 1 + len(self.ends)) * self.width

    def check(self) -> None:
        """Check every value.

        Raises:
            RequestError: one is out of its range.
        """
        if self.width < 1 or self.candidates > _MOST_LOGPROBS:
            most = _MOST_LOGPROBS // max(2, 1 + len(self.ends))
            raise RequestError(f"beam_width is {self.width}; choose from 1 to {most}.", "beam_width")
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens is {self.max_tokens}; choose 1 or more.", "max_tokens")


@dataclass
class _Search:
    """The beams of one prompt: those that run, as (tokens, sum of log-probabilities), and the finished, best first."""

    prompt_ids: list[int]
    rules: BeamRules
    running: list[tuple[list[int], float]] = field(default_factory=lambda: [([], 0.0)])
    finished: list[Beam] = field(default_factory=list)

    def advance(self, tops: Sequence[TokenLogprob]) -> None:
        """Take the likeliest tokens after each running beam."""
        rules = self.rules
        candidates = [
            ([*tokens, token], total + logprob)
            for (tokens, total), after in zip(self.running, tops, strict=True)
            for token, logprob in after.top
        ]
        candidates.sort(key=lambda candidate: -candidate[1])
        del candidates[rules.candidates :]
        ended = [self._ends(tokens) for tokens, _ in candidates]
        best = zip(candidates[: rules.width], ended, strict=False)
        new = [Beam(tokens, self._score(tokens, total)) for (tokens, total), ends in best if ends]
        self.finished = sorted([*self.finished, *new], key=lambda beam: -beam.score)[: rules.width]
        going = [candidate for candidate, ends in zip(candidates, ended, strict=True) if not ends]
        self.running = going[: rules.width]
        if self._is_done():
            self.running = []

    def _ends(self, tokens: list[int]) -> bool:
        return tokens[-1] in self.rules.ends or len(tokens) >= self.rules.max_tokens

    def _score(self, tokens: list[int], total: float) -> float:
        return float(total / len(tokens) ** self.rules.length_penalty)

    def _is_done(self) -> bool:
        if len(self.finished) < self.rules.width or not self.running:
            return not self.running
        return self.rules.early_stopping or self._score(*self.running[0]) <= self.finished[-1].score


def search(
    core: NativeCore, prompts: Iterable[list[int]], rules: BeamRules, adapter: str | None = None
) -> list[list[Beam]]:
    """Return the finished beams of each prompt, computed with ``adapter``, best first.

    Raises:
        RequestError: a prompt or a rule cannot be served.
        EngineError: the model gave no finite probabilities.
    """
    rules.check()
    room = core.info.context_length
    searches = [_Search(ids, rules) for ids in prompts]
    for each in searches:
        if len(each.prompt_ids) + rules.max_tokens > room:
            raise RequestError(
                f"a prompt of {len(each.prompt_ids)} tokens and max_tokens {rules.max_tokens} exceed the context of "
                f"{room}; choose fewer.",
                "max_tokens",
            )
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=rules.candidates)
    while active := [each for each in searches if each.running]:
        requests = [
            GenerationRequest(
                id=f"{number} {place}", prompt_ids=each.prompt_ids + tokens, params=params, adapter=adapter
            )
            for number, each in enumerate(active)
            for place, (tokens, _) in enumerate(each.running)
        ]
        found = {output.id: output.logprob for output in outputs(core, requests)}
        for number, each in enumerate(active):
            tops = [found[f"{number} {place}"] for place in range(len(each.running))]
            each.advance([top for top in tops if top is not None])
    return [each.finished for each in searches]
