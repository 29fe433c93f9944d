"""One request on its way through the engine."""

from array import array
from collections import deque
from dataclasses import dataclass, field
from random import Random

from tuneserve.engines.contract import FinishReason, GenerationRequest, TokenLogprob
from tuneserve.kernels.sampled_rows import MOST_LOGPROBS
from tuneserve.native._bad_words import BadWords
from tuneserve.native._counts import TokenCounts
from tuneserve.native._draft import Drafter
from tuneserve.native._grammar import GrammarState
from tuneserve.native._pooling import Pooling


@dataclass(eq=False)
class Sequence:
    """The tokens of a request, and where the cache holds the first ``computed`` of them.

    ``blocks`` are the cache blocks of its tokens in order, ``state_slot`` is where what it carries beside them is while
    it runs, -1 while it waits, and ``arrival`` its number among the requests; the scheduler keeps all three, as it does
    ``computed`` and ``found``, how many of them it took from the cache since it was last admitted. ``prompt_logprobs``
    are those of the prompt's tokens from the second on, as far as they are known. ``draft`` is the ``drafter``'s guess
    at the tokens to come, while a step computes it. Where parameters need it, ``seen`` counts all tokens and ``new``
    those produced; ``edited`` says whether any parameter changes logits. ``slot`` is that of the request's adapter, -1
    for the base.
    """

    request: GenerationRequest
    tokens: list[int] = field(init=False)
    computed: int = 0
    found: int = 0
    arrival: int = 0
    state_slot: int = -1
    blocks: "array[int]" = field(default_factory=lambda: array("i"))
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    pooling: Pooling | None = None
    drafter: Drafter | None = None
    draft: list[int] = field(default_factory=list)
    seen: TokenCounts | None = None
    new: TokenCounts | None = None
    bad_words: BadWords | None = None
    grammar: GrammarState | None = None
    edited: bool = False
    slot: int = -1
    random: Random = field(init=False)
    _uniforms: deque[float] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt_ids)
        seed = self.request.params.seed
        # As text, because integers would lose their sign.
        self.random = Random(None if seed is None else str(seed))  # noqa: S311
        params = self.request.params
        if params.temperature > 0:
            for _ in range(self.request.resumed):
                self.random.random()
        if params.repetition_penalty != 1:
            self.seen = TokenCounts(self.tokens)
        if params.presence_penalty or params.frequency_penalty:
            self.new = TokenCounts(self.tokens[len(self.tokens) - self.request.resumed :])
        if params.bad_words:
            self.bad_words = BadWords(params.bad_words)
        changes = (self.seen, self.new, params.bad_words, params.logit_bias, params.min_tokens, params.grammar)
        self.edited = any(changes)

    @property
    def generated(self) -> int:
        """Tokens produced so far."""
        return len(self.tokens) - len(self.request.prompt_ids) + self.request.resumed

    @property
    def pending(self) -> int:
        """Tokens that the model has not seen yet."""
        return len(self.tokens) - self.computed

    @property
    def reusable(self) -> int:
        """How many of its first tokens another sequence may have computed: what is asked about each needs it computed.

        It is all of them once the prompt's log-probabilities and its pooled state are known.
        """
        prompt = len(self.request.prompt_ids)
        if self.pooling is not None and self.pooling.count < prompt:
            return self.pooling.count
        if self.request.params.prompt_logprobs is not None and len(self.prompt_logprobs) < prompt - 1:
            return len(self.prompt_logprobs)
        return len(self.tokens)

    def scored_rows(self, start: int, count: int) -> int:
        """Return how many of the last of ``count`` tokens from position ``start`` on need logits."""
        end = start + count
        if self.reusable < len(self.tokens):
            return end - max(start, self.reusable)
        return max(0, end - len(self.tokens) + 1)

    def propose(self, most: int) -> list[int]:
        """Return a guess at up to ``most`` tokens to come, which the sequence's grammar allows; it may be empty."""
        if self.drafter is None or self.reusable < len(self.tokens):
            return []
        guess = self.drafter.propose(self.tokens, most)
        return guess[: self.grammar.allowed(guess)] if guess and self.grammar is not None else guess

    def settle(self, true: int) -> None:
        """Keep the first tokens of the draft, those that came true."""
        if self.drafter is not None and self.draft:
            self.drafter.learn(len(self.draft), true)
        del self.draft[true:]

    def first_logprobs(self) -> list[TokenLogprob] | None:
        """Return the prompt's log-probabilities where they were asked for and the first token is still to come."""
        wanted = self.request.params.prompt_logprobs is not None and not self.generated
        return self.prompt_logprobs if wanted else None

    def past(self, ahead: int) -> list[int]:
        """Return the tokens with the first ``ahead`` of the draft."""
        return self.tokens + self.draft[:ahead] if ahead else self.tokens

    def inputs(self, start: int, end: int) -> list[int]:
        """Return the tokens from position ``start`` to ``end``, those of the draft after all others."""
        return self.tokens[start:end] + self.draft[: max(0, end - len(self.tokens))]

    def uniform(self, ahead: int = 0) -> float:
        """Return the random number in [0, 1) of the next token, or of one ``ahead`` of it."""
        while len(self._uniforms) <= ahead:
            self._uniforms.append(self.random.random())
        return self._uniforms[ahead]

    def append(self, token: int) -> None:
        """Take the next token, and move on in the random stream."""
        self.tokens.append(token)
        for counts in (self.seen, self.new):
            if counts is not None:
                counts.add(token)
        if self.grammar is not None:
            self.grammar.advance(token)
        if self._uniforms:
            self._uniforms.popleft()

    @property
    def rank(self) -> tuple[int, int]:
        """Its place in line; smaller goes first."""
        return self.request.priority, self.arrival

    @property
    def simply_greedy(self) -> bool:
        """Whether its next tokens are the likeliest, and nothing else is asked about them."""
        params = self.request.params
        asks = params.logprobs is not None or self.reusable < len(self.tokens)
        return params.temperature == 0 and not (self.edited or asks or self.drafter)

    @property
    def steps_alone(self) -> bool:
        """Whether a device can choose its next tokens one after the other, without the host."""
        params = self.request.params
        # What its prompt was asked about is known, and has been looked at.
        done = self.reusable == len(self.tokens) and (params.prompt_logprobs is None or self.generated > 0)
        banned = self.bad_words is None or self.bad_words.always() is not None
        plain = params.grammar is None and params.typical_p == 1 and (params.logprobs or 0) <= MOST_LOGPROBS
        return done and banned and plain and self.drafter is None

    def left(self, context_length: int) -> int:
        """Return how many tokens may still come."""
        room = context_length - len(self.tokens)
        most = self.request.params.max_tokens
        return room if most is None else min(room, most - self.generated)

    def finish_reason(self, context_length: int) -> FinishReason | None:
        """Say why the sequence ends with its last token, or None if it goes on."""
        params = self.request.params
        if self.tokens[-1] in params.stop_token_ids:
            return "stop"
        if self.grammar is not None and self.grammar.ended:
            return "stop"
        at_limit = params.max_tokens is not None and self.generated >= params.max_tokens
        return "length" if at_limit or len(self.tokens) >= context_length else None


@dataclass(frozen=True, slots=True)
class Row:
    """A place in a sequence: its next token, or the one after the first ``ahead`` tokens of its draft."""

    sequence: Sequence
    ahead: int = 0
