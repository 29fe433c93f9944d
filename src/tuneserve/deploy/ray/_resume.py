"""What becomes of a sequence whose replica is lost."""

import msgspec

from tuneserve.engines.contract import EngineInfo, FinishReason, GenerationRequest


def finished(request: GenerationRequest, tokens: list[int], info: EngineInfo) -> FinishReason | None:
    """Return why a sequence with these new tokens has ended, None if it has not: only the last word may be missing."""
    if tokens and tokens[-1] in request.params.stop_token_ids:
        return "stop"
    full = len(request.prompt_ids) + len(tokens) >= info.context_length
    return "length" if full or len(tokens) == request.params.max_tokens else None


def resumption(request: GenerationRequest, tokens: list[int], info: EngineInfo) -> GenerationRequest | None:
    """Return the request that goes on after ``tokens``, which another replica has generated.

    None where its continuation would be another than the one that was lost: engines that are not told which tokens were
    generated before would begin their random stream, output penalties and grammar anew.
    """
    params = request.params
    if not tokens:
        return request
    prompt_ids = request.prompt_ids + tokens
    if info.resumes:
        params = msgspec.structs.replace(params, prompt_logprobs=None)
        return msgspec.structs.replace(
            request, prompt_ids=prompt_ids, params=params, resumed=request.resumed + len(tokens)
        )
    drawn = params.temperature > 0 and params.seed is not None
    if drawn or params.grammar or params.presence_penalty or params.frequency_penalty:
        return None
    params = msgspec.structs.replace(
        params,
        max_tokens=None if params.max_tokens is None else params.max_tokens - len(tokens),
        min_tokens=max(0, params.min_tokens - len(tokens)),
        prompt_logprobs=None,
    )
    return msgspec.structs.replace(request, prompt_ids=prompt_ids, params=params)
