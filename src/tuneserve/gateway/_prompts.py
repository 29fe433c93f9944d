"""From messages or prompts to token ids that fit the context."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from tuneserve.gateway._errors import ApiError, context_exceeded
from tuneserve.gateway._schema import ChatRequest, CompletionRequest
from tuneserve.gateway._served import ServedModel

_COMPLETION_TOKENS = 16  # OpenAI's default
_T = TypeVar("_T")


class TextWorkers:
    """Runs work on text beside the event loop, a few pieces at a time."""

    def __init__(self, count: int = 2) -> None:
        self._free = asyncio.Semaphore(count)

    async def run(self, work: Callable[[], _T]) -> _T:
        """Return what ``work`` does."""
        async with self._free:
            return await asyncio.to_thread(work)


async def chat_prompt(served: ServedModel, body: ChatRequest, workers: TextWorkers) -> list[int]:
    """Return the token ids of a conversation.

    Raises:
        ApiError: the model has no chat template, or the conversation does not fit the context.
        RequestError: the template does not take this conversation.
    """
    template = served.template
    if template is None:
        message = f"The model {served.name!r} has no chat template; use /v1/completions."
        raise ApiError(400, message, param="messages", code="no_chat_template")
    continuing = bool(body.continue_final_message)
    generating = not continuing if body.add_generation_prompt is None else body.add_generation_prompt
    if continuing and generating:
        message = "'add_generation_prompt' and 'continue_final_message' exclude each other; send one of them."
        raise ApiError(400, message, param="add_generation_prompt", code="invalid_value")
    messages = [_for_template(message.model_dump(exclude_none=True), message.text) for message in body.messages]

    def encode() -> list[int]:
        text = template.render(
            messages,
            add_generation_prompt=generating,
            continue_final_message=continuing,
            variables=body.chat_template_kwargs,
        )
        return served.tokenizer.encode(text, add_special_tokens=False)

    ids = await workers.run(encode)
    _check_fits(served, ids, "messages")
    return ids


def _for_template(message: dict[str, object], text: str) -> dict[str, object]:
    # OpenAI's successor of "system"; hardly any template knows it.
    role = "system" if message["role"] == "developer" else message["role"]
    return {**message, "role": role, "content": text}


async def completion_prompts(served: ServedModel, body: CompletionRequest, workers: TextWorkers) -> list[list[int]]:
    """Return the token ids of each prompt.

    Raises:
        ApiError: one does not fit the context.
    """

    def encode() -> list[list[int]]:
        tokenizer = served.tokenizer
        return [
            tokenizer.encode(prompt, add_special_tokens=True) if isinstance(prompt, str) else prompt
            for prompt in body.prompt
        ]

    prompts = await workers.run(encode)
    for ids in prompts:
        _check_fits(served, ids, "prompt")
    return prompts


def _check_fits(served: ServedModel, ids: list[int], param: str) -> None:
    if not ids:
        raise ApiError(
            400, f"'{param}' gives a prompt of no tokens; send some text.", param=param, code="invalid_value"
        )
    if len(ids) >= served.context_length:
        message = (
            f"This model's context is {served.context_length} tokens and '{param}' takes {len(ids)} of them, "
            "which leaves none for the answer; shorten it."
        )
        raise context_exceeded(message, param)


def chat_max_tokens(served: ServedModel, body: ChatRequest, prompt_tokens: int) -> int:
    """Return how many tokens the answer may have: what was asked for, else what the context has left.

    Raises:
        ApiError: more was asked for than is left.
    """
    left = served.context_length - prompt_tokens
    if body.max_completion_tokens is not None:
        return _asked(body.max_completion_tokens, left, "max_completion_tokens")
    return left if body.max_tokens is None else _asked(body.max_tokens, left, "max_tokens")


def completion_max_tokens(served: ServedModel, body: CompletionRequest, prompt_tokens: int) -> int:
    """Return how many tokens may follow one prompt: what was asked for, else 16 or what the context has left.

    Raises:
        ApiError: more was asked for than is left.
    """
    left = served.context_length - prompt_tokens
    return min(_COMPLETION_TOKENS, left) if body.max_tokens is None else _asked(body.max_tokens, left, "max_tokens")


def _asked(tokens: int, left: int, param: str) -> int:
    if tokens > left:
        message = (
            f"'{param}' is {tokens} and the prompt leaves {left} tokens of the context; lower it or shorten the prompt."
        )
        raise context_exceeded(message, param)
    return tokens
