"""From what a request says to what the engine is asked."""

from collections.abc import Collection, Mapping

import msgspec

from tuneserve.engines.contract import SamplingParams
from tuneserve.gateway._errors import ApiError
from tuneserve.gateway._schema import Generation
from tuneserve.gateway._served import ServedModel

_NEUTRAL = SamplingParams()
_NAMES = ("min_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")


def sampling(served: ServedModel, body: Generation, max_tokens: int) -> SamplingParams:
    """Return the request's values over the model's defaults, with the model's own end tokens among the stops.

    Raises:
        ApiError: ``min_tokens`` is above ``max_tokens``, or the engine cannot do what is asked.
        RequestError: a value is out of its range.
    """
    given = {name: value for name in _NAMES if (value := getattr(body, name)) is not None}
    if given.get("top_k") == -1:  # off, as in vLLM and SGLang
        given["top_k"] = 0
    if given.get("min_tokens", 0) > max_tokens:
        message = f"'min_tokens' is above the {max_tokens} tokens that may be generated; lower it."
        raise ApiError(400, message, param="min_tokens", code="invalid_value")
    _refuse_lacking(served, given)
    stops = served.tokenizer.end_token_ids.union(body.stop_token_ids or ())
    params = msgspec.structs.replace(
        served.defaults, **given, max_tokens=max_tokens, stop_token_ids=tuple(sorted(stops))
    )
    params.check()
    return params


def _refuse_lacking(served: ServedModel, given: Mapping[str, object]) -> None:
    info = served.engine.info
    for name, value in given.items():
        if name in info.lacks and value != getattr(_NEUTRAL, name):
            message = f"'{name}' is not something that the engine {info.engine} can do; leave it out."
            raise ApiError(400, message, param=name, code="unsupported_parameter")


def without_lacking(defaults: SamplingParams, lacks: Collection[str]) -> SamplingParams:
    """Return ``defaults`` with what an engine lacks switched off."""
    return msgspec.structs.replace(defaults, **{name: getattr(_NEUTRAL, name) for name in _NAMES if name in lacks})
