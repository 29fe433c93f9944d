"""From messages or prompts to token ids that fit the context."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tuneserve.gateway._errors import ApiError, context_exceeded, quoted
from tuneserve.gateway._served import ServedModel
from tuneserve.gateway.schemas import ChatPrompt, ChatRequest, CompletionRequest, Generation, Message
from tuneserve.text import ChatTemplate, UnfinishedError
from tuneserve.text.tools import ToolDefinition, template_messages

_COMPLETION_TOKENS = 16  # OpenAI's default
_FEW_CHARACTERS = 2000
_T = TypeVar("_T")


class TextWorkers:
    """Runs work on text beside the event loop, a few pieces at a time.

    Waking a thread takes several milliseconds where the engine keeps all cores busy, and so does waking the loop again.
    So work on few characters, which takes less than a millisecond, is done at once.
    """

    def __init__(self, count: int = 2) -> None:
        self._free = asyncio.Semaphore(count)

    async def run(self, work: Callable[[], _T], characters: int | None = None) -> _T:
        """Return what ``work`` does, on so many characters; None is not known."""
        if characters is not None and characters <= _FEW_CHARACTERS:
            return work()
        async with self._free:
            return await asyncio.to_thread(work)


# Names that mean something to Transformers or to us, whatever a template calls its variables.
_RESERVED = frozenset(
    {
        "add_generation_prompt", "chat_template", "continue_final_message", "documents", "max_length", "messages",
        "padding", "return_dict", "return_tensors", "tokenize", "tokenizer_kwargs", "tools", "truncation",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """A conversation as text and as token ids."""

    text: str
    ids: list[int]


async def chat_prompt(
    served: ServedModel,
    body: ChatPrompt,
    workers: TextWorkers,
    variables: Mapping[str, Any] | None = None,
    *,
    tools: Sequence[ToolDefinition] = (),
    fits: bool = True,
) -> Prompt:
    """Return a conversation as it is put to the model.

    ``variables`` are set for the template beside the request's own; ``tools`` are those that the model sees.

    Raises:
        ApiError: the model has no chat template, or the conversation does not fit the context although it should.
        RequestError: the template does not take this conversation.
    """
    template = the_template(served)
    continuing = bool(body.continue_final_message)
    generating = not continuing if body.add_generation_prompt is None else body.add_generation_prompt
    if continuing and generating:
        message = "'add_generation_prompt' and 'continue_final_message' exclude each other; send one of them."
        raise ApiError(400, message, param="add_generation_prompt", code="invalid_value")
    own = body.chat_template_kwargs or {}
    _check_variables(template, own)
    messages = [_for_template(template, message) for message in body.messages]

    def render(is_trial: bool = False) -> str:
        return template.render(
            template_messages(messages, template.tool_source or template.source),
            tools=[tool.for_template() for tool in tools] or None,
            add_generation_prompt=generating,
            continue_final_message=continuing,
            variables={**(variables or {}), **own},
            is_trial=is_trial,
        )

    try:
        text = render(is_trial=True)
    except UnfinishedError:
        text = await workers.run(render)
    special = bool(body.add_special_tokens)
    ids = await workers.run(lambda: served.tokenizer.encode(text, add_special_tokens=special), len(text))
    if fits:
        check_fits(served, ids, "messages")
    return Prompt(text, ids)


def truncated(served: ServedModel, body: Generation, answer: int, ids: list[int]) -> list[int]:
    """Return what ``truncate_prompt_tokens`` leaves of a prompt that is to have an ``answer`` of so many tokens.

    Raises:
        ApiError: it would leave more than there is room for.
    """
    asked, most = body.truncate_prompt_tokens, max(1, served.context_length - answer)
    if asked is None:
        return ids
    if asked > most:
        message = f"'truncate_prompt_tokens' is {asked} and the context has {most} for a prompt; lower it."
        raise ApiError(400, message, param="truncate_prompt_tokens", code="invalid_value")
    kept = most if asked == -1 else asked
    return ids[:kept] if body.truncation_side == "right" else ids[-kept:]


def the_template(served: ServedModel) -> ChatTemplate:
    """Return the chat template.

    Raises:
        ApiError: the model has none.
    """
    if served.template is None:
        message = f"The model {served.name!r} has no chat template; use /v1/completions."
        raise ApiError(400, message, param="messages", code="no_chat_template")
    return served.template


def _check_variables(template: ChatTemplate, given: Mapping[str, Any]) -> None:
    for name in given:
        if name in _RESERVED or name not in template.variables:
            known = ", ".join(sorted(template.variables - _RESERVED - template.special_tokens.keys())) or "none"
            message = (
                f"'chat_template_kwargs' sets {quoted(name)}, which is no variable of this model's chat template "
                f"(it has: {known}); leave it out."
            )
            raise ApiError(400, message, param="chat_template_kwargs", code="invalid_value")


def _for_template(template: ChatTemplate, message: Message) -> dict[str, Any]:
    # "developer" is OpenAI's successor of "system"; hardly any template knows it.
    role = "system" if message.role == "developer" and "developer" not in template.source else message.role
    given = message.model_dump(exclude_none=True, exclude={"tool_calls", "parsed"})
    given |= {"role": role, "content": message.text}
    if message.tool_calls:
        given["tool_calls"] = [call.for_template() for call in message.tool_calls]
    return given


async def token_ids(
    served: ServedModel,
    prompts: Sequence[str | list[int]],
    workers: TextWorkers,
    param: str,
    room: int = 1,
    *,
    add_special_tokens: bool = True,
    cut: Callable[[list[int]], list[int]] = list,
) -> list[list[int]]:
    """Return the token ids of each prompt, a text or token ids, which the request gives as ``param``.

    ``cut`` is done to each.

    Raises:
        ApiError: one does not leave ``room`` for so many tokens more, is empty, or has ids that do not exist.
    """

    def encode() -> list[list[int]]:
        tokenizer = served.tokenizer
        return [
            tokenizer.encode(prompt, add_special_tokens=add_special_tokens) if isinstance(prompt, str) else prompt
            for prompt in prompts
        ]

    found = [cut(ids) for ids in await workers.run(encode, sum(map(len, prompts)))]
    for ids in found:
        check_fits(served, ids, param, room)
        check_ids(served, ids, param)
    return found


def check_ids(served: ServedModel, ids: list[int], param: str) -> None:
    """Raise ApiError where a token id does not exist."""
    size = served.engine.info.vocab_size
    if (highest := max(ids, default=0)) >= size:
        message = f"'{param}' has token {highest}, and this model has {size} tokens; use their ids."
        raise ApiError(400, message, param=param, code="invalid_value")


def check_fits(served: ServedModel, ids: list[int], param: str, room: int = 1) -> None:
    """Raise ApiError unless a prompt has tokens and leaves ``room`` for so many."""
    if not ids:
        raise ApiError(
            400, f"'{param}' gives a prompt of no tokens; send some text.", param=param, code="invalid_value"
        )
    if len(ids) + room > served.context_length:
        size = served.context_length
        message = f"This model's context is {size} tokens and '{param}' takes {len(ids)} of them; shorten it."
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
    wanted = wanted_tokens(body)
    return min(wanted, left) if body.max_tokens is None else _asked(wanted, left, "max_tokens")


def wanted_tokens(body: CompletionRequest) -> int:
    """Return how many tokens are to follow a prompt, however much room there is."""
    if body.max_tokens is None:
        return _COMPLETION_TOKENS
    # None at all cannot be asked of an engine; the one is dropped.
    return body.max_tokens or 1


def _asked(tokens: int, left: int, param: str) -> int:
    if tokens > left:
        message = (
            f"'{param}' is {tokens} and the prompt leaves {left} tokens of the context; lower it or shorten the prompt."
        )
        raise context_exceeded(message, param)
    return tokens
