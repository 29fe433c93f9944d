"""What every engine refuses before it computes."""

from tuneserve.engines.contract import EngineInfo, GenerationRequest, SamplingParams
from tuneserve.errors import RequestError

_NEUTRAL = SamplingParams()


def check_request(request: GenerationRequest, info: EngineInfo) -> None:
    """Refuse what an engine that serves ``info`` can never compute.

    Raises:
        RequestError: a value is out of its range, or of a field that the engine lacks; the prompt has no tokens or
            leaves none of the context; a token id is not in the vocabulary; or the adapter is not served.
    """
    ids, params = request.prompt_ids, request.params
    params.check()
    for lacking in info.lacks:
        name, _, kind = lacking.partition(":")
        value = getattr(params, name)
        if value != getattr(_NEUTRAL, name) and (not kind or value.kind == kind):
            raise RequestError(f"{info.engine} does not have {lacking.replace(':', ' ')}; leave it out.", name)
    if request.adapter is not None and request.adapter not in info.adapters:
        raise RequestError(
            f"the adapter {request.adapter[:100]!r} is not being served; choose one that is, or none.", "adapter"
        )
    if not ids:
        raise RequestError("the prompt has no tokens; send at least one.", "prompt")
    if len(ids) >= info.context_length:
        raise RequestError(
            f"the prompt has {len(ids)} tokens, which leaves no room in the context of {info.context_length}; "
            "shorten it.",
            "prompt",
        )
    named = {
        "prompt": ids,
        "stop_token_ids": params.stop_token_ids,
        "logit_bias": params.logit_bias,
        "bad_words": [token for word in params.bad_words for token in word],
    }
    for name, tokens in named.items():
        if any(not 0 <= token < info.vocab_size for token in tokens):
            raise RequestError(f"{name} has token ids outside 0 to {info.vocab_size - 1}; correct them.", name)
