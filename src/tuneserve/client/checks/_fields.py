"""Fields of chat and plain completions beyond those that every server has: refused, or they do what they say."""

import re
from typing import Any

from tuneserve.client.checks._ask import Json, ask, at, events, parsed, refused
from tuneserve.client.checks._optional import TOOL
from tuneserve.client.checks._result import PROMPT, Finding, Target, expect, messages

_CHAT = "/v1/chat/completions"
_COMPLETIONS = "/v1/completions"
_TEXT = "One, two, three, four,"
_TOKENS = 12
_ASKING: Json = {
    "messages": messages("What is the weather in Oslo?"),
    "tools": [TOOL],
    "temperature": 0,
    "max_tokens": 64,
}


def _said(target: Target, prompt: str = PROMPT, **fields: Any) -> str:
    answer = ask(target, _CHAT, {"messages": messages(prompt), "temperature": 0, "max_tokens": 32, **fields})
    text = at(answer, "choices", 0, "message", "content")
    expect(isinstance(text, str), "the message has no text.")
    return str(text)


def unknown_field(target: Target) -> str:
    """A field that nobody knows is a 400 that names it."""
    error = refused(target, _CHAT, {"messages": messages(PROMPT), "max_tokens": 1, "tuneserve_check": 1})
    if error is None:
        raise Finding("unsupported", "a field that nobody knows is taken and ignored.")
    expect(error.status == 400, f"a field that nobody knows is answered with {error.status} instead of 400.")
    expect("tuneserve_check" in error.message, "the 400 does not name the field that nobody knows.")
    return "a field that nobody knows is answered with a 400 that names it."


def developer_role(target: Target) -> str:
    """The role ``developer`` is taken."""
    answer = ask(
        target, _CHAT,
        {"messages": [{"role": "developer", "content": "Be brief."}, *messages(PROMPT)], "max_tokens": 4},
    )  # fmt: skip
    expect(at(answer, "choices", 0, "message"), "there is no message.")
    return "a message of the role developer is taken."


def content_parts(target: Target) -> str:
    """A text in parts is the same as the text."""
    parts = [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]
    whole, split = _said(target), _said(target, messages=parts)
    expect(whole == split, "a text as a content part is answered differently at temperature 0.")
    return "a text as a content part is answered like the text."


def several_prompts(target: Target) -> str:
    """Two prompts have two continuations."""
    answer = ask(target, _COMPLETIONS, {"prompt": [_TEXT, "Red, green,"], "max_tokens": 2})
    indexes = [at(choice, "index") for choice in at(answer, "choices") or []]
    expect(sorted(indexes, key=str) == [0, 1], f"two prompts have choices {indexes} instead of [0, 1].")
    return "two prompts have two choices."


def token_prompts(target: Target) -> str:
    """A prompt may be token ids."""
    answer = ask(target, _COMPLETIONS, {"prompt": [3, 4, 5], "max_tokens": 1})
    count = at(answer, "usage", "prompt_tokens")
    expect(count == 3, f"a prompt of three token ids is counted as {count}.")
    return "a prompt of token ids is taken as it is."


def echo(target: Target) -> str:
    """``echo`` returns the prompt before its continuation."""
    answer = ask(target, _COMPLETIONS, {"prompt": _TEXT, "echo": True, "max_tokens": 1})
    text = at(answer, "choices", 0, "text")
    expect(isinstance(text, str) and text.startswith(_TEXT), "the text does not begin with the prompt.")
    return "the text begins with the prompt."


def completion_logprobs(target: Target) -> str:
    """``logprobs`` of a completion has as many entries as tokens, none above 0."""
    answer = ask(target, _COMPLETIONS, {"prompt": _TEXT, "logprobs": 2, "max_tokens": 4, "temperature": 0})
    found = at(answer, "choices", 0, "logprobs")
    tokens, values = at(found, "tokens"), at(found, "token_logprobs")
    expect(tokens and values and len(tokens) == len(values), "there is not a log-probability for each token.")
    expect(all(isinstance(value, int | float) and value <= 0 for value in values), "a logprob is above 0.")
    tops = at(found, "top_logprobs") or []
    expect(len(tops) == len(tokens), "there are not alternatives for each token.")
    return f"there are logprobs for {len(tokens)} tokens."


def logit_bias(target: Target) -> str:
    """A token that is biased as far as can be is chosen again and again."""
    plain = _said(target, max_tokens=3)
    biased = _said(target, max_tokens=3, logit_bias={"40": 100})
    expect(biased != plain, "a logit_bias of 100 changes nothing.")
    return "a logit_bias of 100 decides what is said."


def ignore_eos(target: Target) -> str:
    """With ``ignore_eos`` the answer has as many tokens as it may have."""
    return _forced(target, ignore_eos=True)


def min_tokens(target: Target) -> str:
    """``min_tokens`` keeps the answer from ending early."""
    return _forced(target, min_tokens=_TOKENS)


def _forced(target: Target, **fields: Any) -> str:
    answer = ask(target, _CHAT, {"messages": messages("Say yes."), "temperature": 0, "max_tokens": _TOKENS, **fields})
    count = at(answer, "usage", "completion_tokens")
    expect(count == _TOKENS, f"the answer has {count} tokens instead of {_TOKENS}.")
    return f"the answer has {_TOKENS} tokens."


def bad_words(target: Target) -> str:
    """A word that is banned is not said."""
    words = re.findall(r"[A-Za-z]{3,}", _said(target))
    if not words:
        raise Finding("skipped", "the model says no words.")
    text = _said(target, bad_words=[words[0]])
    expect(words[0] not in text, f"the banned word {words[0]!r} is said.")
    return f"the banned word {words[0]!r} is not said."


def json_object(target: Target) -> str:
    """``response_format`` json_object gives a JSON object."""
    answer = ask(
        target, _CHAT,
        {"messages": messages("Describe the number eight as a short JSON object."), "temperature": 0,
         "max_tokens": 96, "response_format": {"type": "json_object"}},
    )  # fmt: skip
    text = at(answer, "choices", 0, "message", "content") or ""
    if at(answer, "choices", 0, "finish_reason") == "length":
        expect(text.lstrip().startswith("{"), "the answer does not begin like an object.")
        raise Finding("skipped", "the model goes on for longer than 96 tokens.")
    expect(isinstance(parsed(text), dict), "the answer is no JSON object.")
    return "the answer is a JSON object."


def guided_regex(target: Target) -> str:
    """``guided_regex`` or ``structured_outputs.regex`` gives a text that matches."""
    return _structured(target, {"regex": "[xyz]{3}"}, lambda text: re.fullmatch("[xyz]{3}", text) is not None)


def guided_choice(target: Target) -> str:
    """``guided_choice`` or ``structured_outputs.choice`` gives one of the choices."""
    choices = ["tuna", "salmon"]
    return _structured(target, {"choice": choices}, lambda text: text in choices)


def _structured(target: Target, form: Json, fits: Any) -> str:
    ((kind, value),) = form.items()
    error = refused(target, _CHAT, {"messages": messages(PROMPT), "max_tokens": 1, "structured_outputs": form})
    fields: Json = {f"guided_{kind}": value} if error is not None else {"structured_outputs": form}
    text = _said(target, **fields)
    expect(fits(text), f"the answer does not keep to the {kind}.")
    return f"the answer keeps to the {kind}."


def tool_required(target: Target) -> str:
    """With ``tool_choice`` required, a tool is called."""
    answer = ask(target, _CHAT, {**_ASKING, "tool_choice": "required"})
    name = at(answer, "choices", 0, "message", "tool_calls", 0, "function", "name")
    expect(name == "get_weather", "no tool is called although one must be.")
    return "a tool is called when one must be."


def tool_streaming(target: Target) -> str:
    """A call that must be made is streamed as its name and then its arguments, which together are JSON."""
    choice = {"type": "function", "function": {"name": "get_weather"}}
    chunks = events(target, _CHAT, {**_ASKING, "tool_choice": choice})
    found = [at(chunk, "choices", 0, "delta", "tool_calls", 0) for _, chunk in chunks]
    functions = [function for call in found if isinstance(function := at(call, "function"), dict)]
    expect(functions, "no call is streamed although one must be.")
    expect(functions[0].get("name") == "get_weather", "the first piece of the call has not the tool's name.")
    arguments = parsed("".join(str(function.get("arguments") or "") for function in functions))
    expect(isinstance(arguments, dict) and "city" in arguments, "the pieces of the arguments have no field 'city'.")
    return f"a call is streamed in {len(functions)} pieces."


def tools_unused(target: Target) -> str:
    """With ``tool_choice`` none, no tool is called."""
    answer = ask(target, _CHAT, {**_ASKING, "tool_choice": "none"})
    expect(not at(answer, "choices", 0, "message", "tool_calls"), "a tool is called although none may be.")
    return "no tool is called when none may be."


def continued_message(target: Target) -> str:
    """With ``continue_final_message`` the last message is continued, not answered."""
    begun = [*messages(PROMPT), {"role": "assistant", "content": "One, two,"}]
    fields: Json = {"continue_final_message": True, "add_generation_prompt": False}
    text = _said(target, messages=begun, **fields)
    expect(not text.lstrip().lower().startswith("one"), "the last message is begun again instead of continued.")
    return "the last message is continued."
