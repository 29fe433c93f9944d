"""From a request of the contract to the body of llama-server's POST /completion."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from tuneserve.engines.contract import GenerationRequest, Grammar, SamplingParams
from tuneserve.errors import RequestError

Grammars = Callable[[Grammar], str]

# llama.cpp counts the prompt's tokens for these too, and the contract only what was generated.
_PROMPT_COUNTED = ("presence_penalty", "frequency_penalty")
LACKS = (*_PROMPT_COUNTED, "bad_words", "prompt_logprobs")
# Without llguidance: llama.cpp's own converter leaves out what it does not know of a schema, and says nothing.
LACKS_WITHOUT_LLGUIDANCE = (*LACKS, "grammar:json_schema", "grammar:regex", "grammar:lark")
# Transformers' order.
_SAMPLERS = ("penalties", "temperature", "top_k", "top_p", "min_p", "typ_p")
_SEEDS = 2**31 - 1


def request_body(
    request: GenerationRequest,
    tokens: Sequence[int],
    count: int,
    *,
    held: bool,
    context_length: int,
    adapters: Sequence[str],
    grammars: Grammars,
) -> dict[str, Any]:
    """Return what asks for up to ``count`` tokens after the prompt and ``tokens``.

    ``held`` keeps the stop tokens back; ``adapters`` are all that the server has, in its order; ``grammars`` writes a
    grammar in the form that it takes.

    Raises:
        RequestError: a value cannot be sent.
    """
    params = request.params
    body: dict[str, Any] = {
        "prompt": [*request.prompt_ids, *tokens],
        "n_predict": count,
        "stream": True,
        "return_tokens": True,
        "cache_prompt": True,
        # They say what was in the cache.
        "timings_per_token": True,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "typical_p": params.typical_p,
        "repeat_penalty": params.repetition_penalty,
        "repeat_last_n": context_length if params.repetition_penalty != 1 else 0,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "dynatemp_range": 0,
        "mirostat": 0,
        "samplers": list(_SAMPLERS if params.temperature > 0 else _SAMPLERS[:2]),
        "logit_bias": _biases(params, held=held),
    }
    if params.seed is not None:
        # Each piece of a sequence starts the generator anew, and must not draw the same numbers again.
        body["seed"] = (params.seed + len(tokens)) % _SEEDS
    if params.logprobs is not None:
        body["n_probs"] = max(1, params.logprobs)
    if params.grammar is not None:
        body["grammar"] = grammars(params.grammar)
    if adapters:
        body["lora"] = [{"id": place, "scale": float(name == request.adapter)} for place, name in enumerate(adapters)]
    return body


def _biases(params: SamplingParams, *, held: bool) -> list[list[Any]]:
    biases: list[list[Any]] = []
    for token, bias in params.logit_bias.items():
        if math.isnan(bias) or bias == math.inf:
            raise RequestError(f"logit_bias of token {token} is {bias}; choose a finite number.", "logit_bias")
        biases.append([token, False if bias == -math.inf else bias])
    return [*biases, *([token, False] for token in params.stop_token_ids if held)]
