"""What a server must generate, in one piece and streamed."""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import TypeVar

from tuneserve.client import ChatChunk, ChatCompletion, CompletionChunk, Usage
from tuneserve.client.checks._result import GREEDY_TOKENS, PROMPT, Finding, Target, expect, messages

_FEW_TOKENS = 3
_STOP_LENGTH = 4
_MAX_CHUNKS = 10_000
_TEXT = "One, two, three, four,"
_NUMBERS = ("two", "three", "four", "five")
_Chunk = TypeVar("_Chunk", ChatChunk, CompletionChunk)


def chat(target: Target) -> str:
    """A chat completion has the assistant's words and says why it ended."""
    answer = target.greedy
    role, reason = answer.choices[0].message.role, answer.choices[0].finish_reason
    expect(role == "assistant", f"the message's role is {role!r} instead of 'assistant'.")
    expect(answer.text, "the message has no text.")
    expect(reason in ("stop", "length"), f"the finish_reason is {reason!r} instead of 'stop' or 'length'.")
    return f"it answered with {len(answer.text)} characters."


def chat_streaming(target: Target) -> str:
    """The chunks carry the role first, then the same text as in one piece, then one finish_reason, then [DONE]."""
    stream = target.client.chat_stream(messages(PROMPT), model=target.model, temperature=0, max_tokens=GREEDY_TOKENS)
    chunks = _all(stream)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    expect(choices, "the stream has no chunk with a choice.")
    role = choices[0].delta.role
    expect(role == "assistant", f"the first chunk's role is {role!r} instead of 'assistant'.")
    _expect_one_reason([choice.finish_reason for choice in choices])
    expect(len({chunk.id for chunk in chunks}) == 1, "the chunks of one answer have different ids.")
    text = "".join(choice.delta.content or "" for choice in choices)
    expect(text == target.greedy.text, "the streamed text differs from the text in one piece at temperature 0.")
    return f"it came in {len(chunks)} chunks."


def streaming_usage(target: Target) -> str:
    """With stream_options.include_usage the last chunk has no choices and the usage of the whole request."""
    stream = target.client.chat_stream(
        messages(PROMPT),
        model=target.model,
        temperature=0,
        max_tokens=GREEDY_TOKENS,
        stream_options={"include_usage": True},
    )
    last = _all(stream)[-1:]
    expect(last and last[0].usage, "the last chunk has no usage.")
    expect(not last[0].choices, "the chunk with the usage has choices too.")
    return _summed(last[0].usage)


def usage(target: Target) -> str:
    """The usage counts prompt and completion, and adds them up."""
    return _summed(target.greedy.usage)


def max_tokens(target: Target) -> str:
    """An answer that would be longer ends after max_tokens with finish_reason 'length'."""
    answer = target.chat(temperature=0, max_tokens=_FEW_TOKENS)
    used = answer.usage.completion_tokens if answer.usage else None
    expect(used is None or used <= _FEW_TOKENS, f"the answer has {used} tokens with max_tokens {_FEW_TOKENS}.")
    reason = answer.choices[0].finish_reason
    if used is not None and reason == "stop" and answer.text == target.greedy.text:
        raise Finding("skipped", f"the model ends its answer by itself after {used} tokens.")
    expect(reason == "length", f"the finish_reason is {reason!r} instead of 'length' after {_FEW_TOKENS} tokens.")
    return f"the answer ended after {_FEW_TOKENS} tokens with finish_reason 'length'."


def stop(target: Target) -> str:
    """The answer ends before the stop string, with finish_reason 'stop'."""
    whole = target.greedy.text
    middle = len(whole) // 2
    text = whole[middle : middle + _STOP_LENGTH]
    before = whole[: whole.index(text)]
    if not before:
        raise Finding("skipped", "the model's answer is too short or too uniform to be stopped in its middle.")
    answer = target.chat(temperature=0, max_tokens=GREEDY_TOKENS, stop=[text])
    reason = answer.choices[0].finish_reason
    expect(text not in answer.text, f"the answer contains the stop string {text!r}.")
    expect(reason == "stop", f"the finish_reason is {reason!r} instead of 'stop' at a stop string.")
    expect(answer.text.rstrip() == before.rstrip(), "the text before the stop string differs from that without one.")
    return f"the answer ended before {text!r}."


def seed(target: Target) -> str:
    """The same seed gives the same answer at temperature 1."""
    answers = {target.chat(temperature=1, seed=7, max_tokens=GREEDY_TOKENS).text for _ in range(2)}
    expect(len(answers) == 1, "two answers with the same seed differ.")
    return "two answers with the same seed are equal."


def temperature_zero(target: Target) -> str:
    """Temperature 0 gives the same answer again."""
    again = target.chat(temperature=0, max_tokens=GREEDY_TOKENS)
    expect(again.text == target.greedy.text, "two answers at temperature 0 differ.")
    return "two answers at temperature 0 are equal."


def completions(target: Target) -> str:
    """A text is continued."""
    answer = target.client.completion(_TEXT, model=target.model, temperature=0, max_tokens=GREEDY_TOKENS)
    reason = answer.choices[0].finish_reason
    expect(answer.text, "the continuation has no text.")
    expect(reason in ("stop", "length"), f"the finish_reason is {reason!r} instead of 'stop' or 'length'.")
    return f"it continued the text with {len(answer.text)} characters."


def completions_streaming(target: Target) -> str:
    """The chunks carry a text, then one finish_reason, then [DONE]."""
    stream = target.client.completion_stream(_TEXT, model=target.model, temperature=0, max_tokens=GREEDY_TOKENS)
    chunks = _all(stream)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    expect(any(choice.text for choice in choices), "the streamed continuation has no text.")
    _expect_one_reason([choice.finish_reason for choice in choices])
    expect(len({chunk.id for chunk in chunks}) == 1, "the chunks of one answer have different ids.")
    return f"it came in {len(chunks)} chunks."


def concurrent_requests(target: Target) -> str:
    """Four requests at once are all answered, each for itself."""

    def ask(number: str) -> ChatCompletion:
        return target.chat(f"Count from {number} to twenty in words.", temperature=0, max_tokens=GREEDY_TOKENS)

    with ThreadPoolExecutor(len(_NUMBERS)) as pool:
        answers = list(pool.map(ask, _NUMBERS))
    expect(all(answer.text for answer in answers), "one of four answers at once has no text.")
    expect(len({answer.id for answer in answers}) == len(_NUMBERS), "different answers have the same id.")
    return "four requests at once were all answered."


def _all(stream: Generator[_Chunk, None, None]) -> list[_Chunk]:
    with closing(stream):
        chunks = list(islice(stream, _MAX_CHUNKS + 1))
    expect(len(chunks) <= _MAX_CHUNKS, f"the stream goes on after {_MAX_CHUNKS} chunks.")
    return chunks


def _expect_one_reason(reasons: list[str | None]) -> None:
    given = [reason for reason in reasons if reason is not None]
    expect(len(given) == 1, f"the stream has {len(given)} finish_reasons instead of one.")
    expect(given[0] in ("stop", "length"), f"the finish_reason is {given[0]!r} instead of 'stop' or 'length'.")
    expect(reasons[-1] is not None, "the stream goes on after its finish_reason.")


def _summed(counts: Usage | None) -> str:
    if counts is None:
        raise Finding("fail", "the answer has no usage.")
    prompt, completion, total = counts.prompt_tokens, counts.completion_tokens, counts.total_tokens
    shown = f"{prompt} + {completion} tokens, and {total} in total"
    expect(prompt > 0 and completion > 0 and prompt + completion == total, f"the usage does not add up: {shown}.")
    return f"the usage adds up: {shown}."
