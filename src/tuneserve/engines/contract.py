"""The engine contract: token ids in, token ids out.

Every engine, whatever runs it, stands behind :class:`Engine`. Text never crosses this seam: the gateway renders
templates, detokenises, and cuts at stop strings, so that a conversation is the same tokens on every engine.
"""

from collections.abc import AsyncGenerator, Mapping
from typing import Literal, Protocol

import msgspec

from tuneserve.errors import RequestError

FinishReason = Literal["stop", "length"]


class Grammar(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the output must look like: a JSON schema, a regular expression or a grammar, as text.

    ``json_object`` has no text; ``choice`` is a JSON array of strings; ``lark`` is the grammar form of llguidance.
    """

    kind: Literal["json_object", "json_schema", "regex", "choice", "lark"]
    text: str = ""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the next token is chosen. Validate untrusted values with :meth:`check` before use.

    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1, ``min_p`` 0, ``typical_p`` 1, ``repetition_penalty`` 1 and
    the other penalties 0 switch their filter off. ``max_tokens`` None means up to the context length.
    ``stop_token_ids`` end the sequence when sampled and are part of the output; the model's own end tokens are included
    by whoever builds the request, and left out for ``ignore_eos``. ``logit_bias`` is added to the logits before all
    else; ``bad_words`` are token sequences that never appear. ``logprobs`` asks for the log-probability of each new
    token and of so many of the likeliest, before any filter; ``prompt_logprobs`` for the same of the prompt.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = {}
    bad_words: tuple[tuple[int, ...], ...] = ()
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None

    def check(self) -> None:
        """Check every value.

        Raises:
            RequestError: one is out of its range, named by ``param``.
        """
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise RequestError(f"{name} is {value:g}, outside {low:g} to {high:g}; choose a value within.", name)
        if not self.top_p > 0:
            raise RequestError("top_p is 0, which leaves no token to choose; use temperature 0 for greedy.", "top_p")
        if not self.repetition_penalty > 0:
            raise RequestError(
                "repetition_penalty is 0; choose a value above 0, 1 switches it off.", "repetition_penalty"
            )
        if not self.typical_p > 0:
            raise RequestError("typical_p is 0, which leaves no token to choose; choose one above 0.", "typical_p")
        for token, bias in self.logit_bias.items():
            if not -_MAX_BIAS <= bias <= _MAX_BIAS:
                raise RequestError(
                    f"logit_bias of token {token} is {bias:g}, outside -100 to 100; choose a value within.",
                    "logit_bias",
                )
        if not all(self.bad_words) or sum(map(len, self.bad_words)) > _MAX_BAD_TOKENS:
            raise RequestError(
                f"bad_words has an empty word, or more than {_MAX_BAD_TOKENS} tokens; shorten the list.", "bad_words"
            )


_MAX_COUNT = 2**31 - 1
_MAX_LOGPROBS = 100
_MAX_BIAS = 100
_MAX_BAD_TOKENS = 20_000
_RANGES = (
    ("max_tokens", 1, _MAX_COUNT),
    ("min_tokens", 0, _MAX_COUNT),
    ("temperature", 0, 100),
    ("top_p", 0, 1),
    ("top_k", 0, _MAX_COUNT),
    ("min_p", 0, 1),
    ("typical_p", 0, 1),
    ("presence_penalty", -100, 100),
    ("frequency_penalty", -100, 100),
    ("logprobs", 0, _MAX_LOGPROBS),
    ("prompt_logprobs", 0, _MAX_LOGPROBS),
    ("repetition_penalty", 0, 100),
    ("seed", -(2**63), 2**64 - 1),
)


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One sequence to continue. ``adapter`` None is the model as served.

    Of those that wait, the smallest ``priority`` goes first, then the oldest. The last ``resumed`` of the prompt's tokens
    are not the prompt's: another engine generated them for the same request and was lost. Limits, penalties, the grammar
    and the random stream go on after them as if nothing had happened.
    """

    id: str
    prompt_ids: list[int]
    params: SamplingParams
    adapter: str | None = None
    priority: int = 0
    resumed: int = 0


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """The natural log-probability of a token, and of the likeliest tokens at its place, likeliest first."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = []


class TokenChunk(msgspec.Struct, frozen=True, kw_only=True):
    """New tokens of one sequence; the last chunk carries the finish reason and may be empty.

    ``logprobs`` has an entry per token where they were asked for. ``prompt_logprobs`` comes once, with the first chunk:
    an entry per prompt token but the first.
    """

    token_ids: list[int]
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a running engine serves. Lengths are in tokens; ``weight_bytes`` in bytes.

    ``lacks`` names the fields of :class:`SamplingParams` that it cannot honour, for a grammar with its kind
    (``grammar:lark``); a request that sets one is refused. ``adapters`` are the names that requests may give. ``resumes``
    says whether it honours :attr:`GenerationRequest.resumed`.
    """

    engine: str
    version: str
    context_length: int
    vocab_size: int
    dtype: str
    device: str
    weight_bytes: int
    max_running: int
    lacks: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    resumes: bool = False


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of the load: sequences, and the share of the KV cache in use (0 to 1).

    Since the start, ``prefix_queries`` tokens were looked up in the prefix cache and ``prefix_hits`` found there. Of the
    sequences on replicas that were lost, ``retried`` were begun again elsewhere, ``resumed`` went on elsewhere after the
    tokens they had, and ``broken_off`` ended with an error.
    """

    running: int
    waiting: int
    cache_usage: float
    prefix_queries: int = 0
    prefix_hits: int = 0
    retried: int = 0
    resumed: int = 0
    broken_off: int = 0


class Engine(Protocol):
    """A running engine, used from one event loop.

    ``generate`` yields chunks until one has a finish reason; closing the generator early cancels the sequence and frees
    what it held within one step. It raises :class:`~tuneserve.errors.RequestError` for a request that can never be
    served (empty or too long a prompt, token ids out of range) and :class:`~tuneserve.errors.EngineError` when the
    engine fails; other sequences go on.
    """

    @property
    def info(self) -> EngineInfo:
        """What is being served; available once started."""

    @property
    def ready(self) -> bool:
        """Whether new requests will be taken now."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """Continue one sequence."""

    async def stats(self) -> EngineStats:
        """Load right now."""

    async def close(self) -> None:
        """Stop the engine and wait until it is gone; running sequences end with an error."""
