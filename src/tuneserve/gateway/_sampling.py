"""From what a request says to what the engine is asked."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from tuneserve.engines.contract import SamplingParams
from tuneserve.gateway._constraint import Constraint, refuse_lacking_grammar
from tuneserve.gateway._errors import ApiError
from tuneserve.gateway._served import ServedModel
from tuneserve.gateway.schemas import Generation
from tuneserve.text import Tokenizer

_NEUTRAL = SamplingParams()
_NAMES = (
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)
# What waits is served in this order. Other tiers are the default one, and an answer names the one that it had.
_PRIORITIES = {"priority": -1, "default": 0, "flex": 1}
_TIERS = {"priority": "priority", "fast": "priority", "ultrafast": "priority", "flex": "flex"}
_SEEDS = 2**63


def sampling(
    served: ServedModel,
    body: Generation,
    max_tokens: int,
    form: Constraint | None = None,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """Return the request's values over the model's defaults, with the model's own end tokens among the stops.

    Raises:
        ApiError: ``min_tokens`` is above ``max_tokens``, or the engine cannot do what is asked.
        RequestError: a value is out of its range.
    """
    given: dict[str, Any] = {name: value for name in _NAMES if (value := getattr(body, name)) is not None}
    if given.get("top_k") == -1:  # off, as in vLLM and SGLang
        given["top_k"] = 0
    if given.get("min_tokens", 0) > max_tokens:
        message = f"'min_tokens' is above the {max_tokens} tokens that may be generated; lower it."
        raise ApiError(400, message, param="min_tokens", code="invalid_value")
    if body.logit_bias:
        given["logit_bias"] = _biases(served, body.logit_bias)
    if body.bad_words:
        given["bad_words"] = _bad_words(served.tokenizer, body.bad_words)
    if logprobs is not None:
        given["logprobs"] = logprobs
    if prompt_logprobs is not None:
        given["prompt_logprobs"] = prompt_logprobs
    _refuse_lacking(served, given, "echo" if body.prompt_logprobs is None else "prompt_logprobs")
    if form is not None:
        refuse_lacking_grammar(served.engine.info, form)
        given["grammar"] = form.grammar
    ends = () if body.ignore_eos else served.tokenizer.end_token_ids
    # The model's files may name one that it does not have, which the request can do nothing about.
    possible = {token for token in ends if token < served.engine.info.vocab_size}
    stops = possible.union(body.stop_token_ids or ())
    params = msgspec.structs.replace(
        served.defaults, **given, max_tokens=max_tokens, stop_token_ids=tuple(sorted(stops))
    )
    params.check()
    return params


def samples(params: SamplingParams, count: int) -> list[SamplingParams]:
    """Return the parameters of so many samples of one prompt, which differ in their seed where there is one."""
    if params.seed is None:
        return [params] * count
    seeds = ((params.seed + index + _SEEDS) % (2 * _SEEDS) - _SEEDS for index in range(count))
    return [msgspec.structs.replace(params, seed=seed) for seed in seeds]


def tier(asked: str | None) -> str:
    """Return the service tier that a request has which ``asked`` for one."""
    return _TIERS.get(asked or "", "default")


def priority(served: ServedModel, body: Generation) -> int:
    """Return the place in the queue that ``priority`` or the service tier gives.

    Raises:
        ApiError: both do, or the engine takes requests in the order in which they come.
    """
    place = _PRIORITIES[tier(body.service_tier)]
    if not body.priority:
        return place
    if place:
        message = "'priority' and 'service_tier' both say who goes first; send one of them."
        raise ApiError(400, message, param="priority", code="invalid_value")
    info = served.engine.info
    if not info.prioritises:
        message = f"'priority' is not something that the engine {info.engine} can do; leave it out."
        raise ApiError(400, message, param="priority", code="unsupported_parameter")
    return body.priority


def _biases(served: ServedModel, biases: Mapping[str, float]) -> dict[int, float]:
    size = served.engine.info.vocab_size
    found = {int(token): float(bias) for token, bias in biases.items()}
    if (highest := max(found)) >= size:
        message = f"'logit_bias' names token {highest}, and this model has {size} tokens; use their ids."
        raise ApiError(400, message, param="logit_bias", code="invalid_value")
    return found


def _bad_words(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Return each word as the tokens it is at the beginning of a text, and within one behind a space."""
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        alone = tuple(tokenizer.encode(word, add_special_tokens=False))
        spaced = tuple(tokenizer.encode(" " + word.lstrip(), add_special_tokens=False))
        found[alone] = None
        if spaced[:1] != alone[:1]:
            found[spaced] = None
    return tuple(word for word in found if word)


def _refuse_lacking(served: ServedModel, given: Mapping[str, object], scoring: str) -> None:
    """Raise ApiError where the engine cannot do what is asked; ``scoring`` is the field that has the prompt scored."""
    info = served.engine.info
    for name, value in given.items():
        if name in info.lacks and value != getattr(_NEUTRAL, name):
            field = scoring if name == "prompt_logprobs" else name
            message = f"'{field}' is not something that the engine {info.engine} can do; leave it out."
            raise ApiError(400, message, param=field, code="unsupported_parameter")


def without_lacking(defaults: SamplingParams, lacks: Collection[str]) -> SamplingParams:
    """Return ``defaults`` with what an engine lacks switched off."""
    return msgspec.structs.replace(defaults, **{name: getattr(_NEUTRAL, name) for name in _NAMES if name in lacks})
