"""Fields of OpenAI and vLLM that this server does not implement, and the values of theirs that ask for nothing."""

from collections.abc import Collection, Mapping
from typing import Any

from tuneserve.gateway._errors import ApiError, quoted

# A field is refused unless its value is null or one of these.
Neutral = Mapping[str, tuple[object, ...]]

_VLLM: Neutral = {
    "cache_salt": (),
    "detokenize": (True,),
    "early_stopping": (False,),
    "ec_transfer_params": (),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "kv_transfer_params": (),
    "length_penalty": (1.0, 1),
    "logits_processors": ([],),
    "logprob_token_ids": (),
    "repetition_detection": (),
    "request_id": (),
    "session_id": (),
    "spaces_between_special_tokens": (True,),
    "stream_interval": (1,),
    "structural_tag": (),
    "thinking_token_budget": (-1,),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
    "watermarking": (False,),
}
CHAT: Neutral = {
    **_VLLM,
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "media_io_kwargs": (),
    "mm_processor_kwargs": (),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "store": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
COMPLETION: Neutral = {
    **_VLLM,
    "prompt_embeds": (),
    "suffix": ("",),
}
EMBEDDING: Neutral = {
    "dimensions": (),
}
MESSAGE: Neutral = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
}


def drop_neutral(
    fields: Mapping[str, Any], known: Collection[str], neutral: Neutral, path: str = "", *, lenient: bool = False
) -> dict[str, Any]:
    """Return the ``known`` ones of ``fields``; ``path`` is what their names are prefixed with in messages.

    What is no field at all is dropped where the server is ``lenient``.

    Raises:
        ApiError: another has a value that asks for something, or is no field at all.
    """
    kept = {}
    for name, value in fields.items():
        if name in known:
            kept[name] = value
        elif name not in neutral:
            if lenient:
                continue
            shown = quoted(path + name)
            message = f"Unknown parameter {shown}; remove it."
            raise ApiError(400, message, param=shown[1:-1], code="unknown_parameter")
        elif value is not None and not any(type(value) is type(same) and value == same for same in neutral[name]):
            choices = " or ".join(map(repr, neutral[name]))
            remedy = f"leave it out or send {choices}" if choices else "leave it out"
            message = f"'{path}{name}' is not supported with this value; {remedy}."
            raise ApiError(400, message, param=path + name, code="unsupported_parameter")
    return kept
