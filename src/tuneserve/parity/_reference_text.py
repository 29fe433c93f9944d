"""The text of a reference, by Transformers' own tokenizer.

That has no limits, so a chat template is rendered within ours first.
"""

from typing import Any

from tuneserve.errors import RequestError, TextError
from tuneserve.text import BackendError, compile_chat_template, guarded

Messages = list[dict[str, str]]


def encode(tokenizer: Any, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """Return the token ids of a text.

    Raises:
        TextError: the tokenizer has none for it.
    """
    try:
        return guarded(lambda: list(tokenizer(text, add_special_tokens=add_special_tokens).input_ids))
    except BackendError as error:
        raise TextError(
            f"the reference's tokenizer cannot encode {text[:20]!r} ({error}); download or save it again."
        ) from None


def rendered(tokenizer: Any, messages: Messages, *, add_generation_prompt: bool = False) -> str:
    """Return a conversation as text.

    Raises:
        RequestError: the chat template refuses it.
        TextError: the template is broken, or takes more time or memory than a conversation needs.
    """
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if not isinstance(token, list)}
    try:
        source = guarded(tokenizer.get_chat_template)
    except BackendError as error:
        raise _no_conversation(error) from None
    template = compile_chat_template(source, special, str(tokenizer.name_or_path))
    if "lipsum" in template.variables:
        raise TextError("the reference's chat template makes text up (lipsum); repair it, or remove it.")
    template.render(messages, add_generation_prompt=add_generation_prompt)
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))
    except Exception as error:
        raise _no_conversation(error) from None


def render(tokenizer: Any, messages: Messages) -> list[int]:
    """Return the token ids of a conversation, up to where the answer begins.

    Raises:
        TextError: the chat template takes no conversation.
    """
    try:
        text = rendered(tokenizer, messages, add_generation_prompt=True)
    except RequestError:
        # Some templates take no system message.
        try:
            text = rendered(tokenizer, messages[-1:], add_generation_prompt=True)
        except RequestError as error:
            raise _no_conversation(error) from None
    return encode(tokenizer, text, add_special_tokens=False)


def _no_conversation(error: Exception) -> TextError:
    reason = str(error).rstrip(".")
    return TextError(f"the reference's chat template takes no conversation ({reason}); repair it, or remove it.")
