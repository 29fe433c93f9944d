"""From what a request says to what the engine is asked."""

import msgspec

from tuneserve.engines.contract import SamplingParams
from tuneserve.gateway._errors import ApiError
from tuneserve.gateway._schema import Generation
from tuneserve.gateway._served import ServedModel

_NAMES = ("min_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")


def sampling(served: ServedModel, body: Generation, max_tokens: int) -> SamplingParams:
    """Return the request's values over the model's defaults, with the model's own end tokens among the stops.

    Raises:
        ApiError: ``min_tokens`` is above ``max_tokens``.
        RequestError: a value is out of its range.
    """
    given = {name: value for name in _NAMES if (value := getattr(body, name)) is not None}
    if given.get("top_k") == -1:  # off, as in vLLM and SGLang
        given["top_k"] = 0
    if given.get("min_tokens", 0) > max_tokens:
        message = f"'min_tokens' is above the {max_tokens} tokens that may be generated; lower it."
        raise ApiError(400, message, param="min_tokens", code="invalid_value")
    stops = served.tokenizer.end_token_ids.union(body.stop_token_ids or ())
    params = msgspec.structs.replace(
        served.defaults, **given, max_tokens=max_tokens, stop_token_ids=tuple(sorted(stops))
    )
    params.check()
    return params
