"""One request on its way through the engine."""

from array import array
from dataclasses import dataclass, field
from random import Random

from tuneserve.engines.contract import FinishReason, GenerationRequest


@dataclass(eq=False)
class Sequence:
    """The tokens of a request, and where the cache holds the first ``computed`` of them.

    ``blocks`` are the cache blocks of its tokens in order, and ``arrival`` its number among the requests; the scheduler
    keeps both, as it does ``computed``.
    """

    request: GenerationRequest
    tokens: list[int] = field(init=False)
    computed: int = 0
    arrival: int = 0
    blocks: "array[int]" = field(default_factory=lambda: array("i"))
    random: Random = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt_ids)
        seed = self.request.params.seed
        # As text, because integers would lose their sign.
        self.random = Random(None if seed is None else str(seed))  # noqa: S311

    @property
    def generated(self) -> int:
        """Tokens produced so far."""
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def pending(self) -> int:
        """Tokens that the model has not seen yet."""
        return len(self.tokens) - self.computed

    @property
    def rank(self) -> tuple[int, int]:
        """Its place in line; smaller goes first."""
        return self.request.priority, self.arrival

    def finish_reason(self, context_length: int) -> FinishReason | None:
        """Say why the sequence ends with its last token, or None if it goes on."""
        params = self.request.params
        if self.tokens[-1] in params.stop_token_ids:
            return "stop"
        at_limit = params.max_tokens is not None and self.generated >= params.max_tokens
        return "length" if at_limit or len(self.tokens) >= context_length else None
