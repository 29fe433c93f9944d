"""The text around a model: the same conversation must be the same tokens, and an answer must end where it did.

The reference's side is Transformers' tokenizer, the candidate's the one that serves.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from tuneserve.errors import InputError, RequestError, TextError
from tuneserve.parity._probes import conversations
from tuneserve.parity._reference_text import Messages, encode, render, rendered
from tuneserve.parity._report import TextCheck
from tuneserve.parity._stream import StreamedModel
from tuneserve.sources import ResolvedSource, read_config
from tuneserve.text import ChatTemplate, Tokenizer, open_chat_template, open_tokenizer

TEMPLATE, STOPS, TOKENS = "template", "stop tokens", "tokenizer"
_ANSWER = "Yes."
# What a conversation begins with is answered briefly.
GREETING = "Hi"
ANSWER_TOKENS = 24
_FILES = ("generation_config.json", "config.json")
_KEYS = ("bos_token_id", "eos_token_id")


def check_text(
    reference: Any, theirs: ResolvedSource, ours: ResolvedSource, config: Mapping[str, Any]
) -> tuple[tuple[TextCheck, ...], tuple[str, ...]]:
    """Compare the candidate's tokens with those of the ``reference``'s Transformers tokenizer.

    ``config`` is the candidate's ``config.json``. Returns the checks, and notes on what could not be checked.

    Raises:
        TextError: a file of the reference's is malformed.
    """
    try:
        tokenizer = open_tokenizer(ours.tokenizer_dir, ours.model_dir)
        template = open_chat_template(ours.tokenizer_dir, ours.model_dir)
    except TextError as error:
        if (ours.tokenizer_dir / "tokenizer.json").is_file():
            return (TextCheck("tokenizer", TOKENS, False, str(error).rstrip(".")),), ()
        return (), (f"{ours.name} has no tokenizer.json, so no text was checked",)
    checks = [_plain(reference, tokenizer), *_conversations(reference, tokenizer, template)]
    return (*checks, *_stops(reference, theirs, ours, tokenizer, config)), ()


def end_tokens(reference: Any, source: ResolvedSource) -> frozenset[int]:
    """Return what ends an answer by the tokenizer, ``generation_config.json`` and ``config.json`` of a source."""
    found = {reference.eos_token_id}
    for name in _FILES:
        found |= _ids(_settings(source, name).get("eos_token_id"))
    return frozenset(found - {None})


def check_stopping(reference: Any, theirs: StreamedModel, ours: StreamedModel, ends: frozenset[int]) -> TextCheck:
    """Let the candidate answer greedily: it must stop by itself where the reference does, within ``ANSWER_TOKENS``.

    Raises:
        SourceError: a model cannot run.
    """
    name = "a greedy answer"
    ids = torch.tensor([render(reference, [{"role": "user", "content": GREETING}])])
    answer = ours.generate(ids, ends, ANSWER_TOKENS)
    if answer[-1] in ends:
        return TextCheck(name, STOPS, True, f"stops after {len(answer)} tokens")
    expected = theirs.generate(ids, end_tokens(reference, theirs.side.source), ANSWER_TOKENS)
    if expected[-1] not in end_tokens(reference, theirs.side.source):
        return TextCheck(name, STOPS, True, f"neither stops within {ANSWER_TOKENS} tokens")
    return TextCheck(name, STOPS, False, f"runs on where the reference stops after {len(expected)} tokens")


def _plain(reference: Any, tokenizer: Tokenizer) -> TextCheck:
    differing = [
        message["content"]
        for messages in conversations()
        for message in messages[-1:]
        if encode(reference, message["content"]) != tokenizer.encode(message["content"], add_special_tokens=True)
    ]
    detail = f"other tokens for {differing[0][:40]!r}" if differing else "the same tokens"
    return TextCheck("tokens of plain text", TOKENS, not differing, detail)


def _conversations(reference: Any, tokenizer: Tokenizer, template: ChatTemplate | None) -> Iterator[TextCheck]:
    name = "tokens of conversations"
    if not reference.chat_template:
        return
    if template is None:
        yield TextCheck(name, TEMPLATE, False, "the candidate has no chat template")
        return
    try:
        differing = _differing(reference, tokenizer, template)
    except InputError as error:
        yield TextCheck(name, TEMPLATE, False, str(error).rstrip("."))
        return
    yield TextCheck(name, TEMPLATE, differing is None, differing or "the same tokens")
    yield _one_bos(reference, tokenizer, template)
    yield _answer_ends(reference, tokenizer, template)


def _differing(reference: Any, tokenizer: Tokenizer, template: ChatTemplate) -> str | None:
    for messages in _all_conversations():
        expected = render(reference, messages)
        try:
            text = template.render(messages)
        except RequestError:
            # As for the reference: some templates take no system message.
            text = template.render(messages[-1:])
        found = tokenizer.encode(text, add_special_tokens=False)
        if found != expected:
            return _first_difference(tokenizer, expected, found)
    return None


def _all_conversations() -> list[Messages]:
    single = conversations()
    answer = {"role": "assistant", "content": _ANSWER}
    return [*single, [*single[0], answer, {"role": "user", "content": "Why?"}]]


def _one_bos(reference: Any, tokenizer: Tokenizer, template: ChatTemplate) -> TextCheck:
    """Compare how many BOS begin a conversation whose text is tokenized like any other, as some servers do."""
    messages = conversations()[0]
    bos = reference.bos_token_id
    text = rendered(reference, messages, add_generation_prompt=True)
    expected = _leading(encode(reference, text), bos)
    found = _leading(tokenizer.encode(template.render(messages), add_special_tokens=True), bos)
    passed = found == expected or found == 1
    detail = f"{found} BOS at the start" + ("" if passed else f" instead of {expected}")
    return TextCheck("BOS of conversations", TEMPLATE, passed, detail)


def _leading(ids: list[int], token: int | None) -> int:
    count = 0
    while count < len(ids) and ids[count] == token:
        count += 1
    return count


def _answer_ends(reference: Any, tokenizer: Tokenizer, template: ChatTemplate) -> TextCheck:
    """Check that what the template writes after an answer is a stop token, if the reference's is."""
    messages = [*conversations()[0], {"role": "assistant", "content": _ANSWER}]
    expected = rendered(reference, messages).rpartition(_ANSWER)[2]
    found = template.render(messages, add_generation_prompt=False).rpartition(_ANSWER)[2]
    ends = {reference.eos_token_id}
    ended = [index for index in tokenizer.encode(found, add_special_tokens=False) if index in tokenizer.end_token_ids]
    wanted = [index for index in encode(reference, expected, add_special_tokens=False) if index in ends]
    passed = bool(ended) or not wanted
    detail = "a stop token ends it" if ended else "no stop token ends it" + ("" if passed else ", so it runs on")
    return TextCheck("end of an answer", STOPS, passed, detail)


def _stops(
    reference: Any, theirs: ResolvedSource, ours: ResolvedSource, tokenizer: Tokenizer, config: Mapping[str, Any]
) -> Iterator[TextCheck]:
    expected, found = end_tokens(reference, theirs), tokenizer.end_token_ids
    # A special token more ends nothing early: no other text has it.
    passed = expected <= found and found - expected <= tokenizer.special_ids
    detail = f"{sorted(found)}" + ("" if passed else f" instead of {sorted(expected)}")
    yield TextCheck("stop tokens", STOPS, passed, detail)
    tokens = {"bos_token": reference.bos_token, "eos_token": reference.eos_token}
    named = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    wrong = [f"{key} {named[key]!r} instead of {tokens[key]!r}" for key in tokens if tokens[key] != named[key]]
    yield TextCheck("BOS and EOS of the tokenizer", STOPS, not wrong, "; ".join(wrong) or "the same tokens")
    # A GGUF file has one EOS and no such files; what its metadata says has become the tokenizer's.
    if not ours.source.endswith(".gguf"):
        yield _settings_agree(theirs, ours, config)


def _settings_agree(theirs: ResolvedSource, ours: ResolvedSource, config: Mapping[str, Any]) -> TextCheck:
    wrong = []
    for name in _FILES:
        expected = _settings(theirs, name)
        found = config if name == "config.json" else _settings(ours, name)
        wrong += [
            f"{name} has {key} {found.get(key)} instead of {expected[key]}"
            for key in _KEYS
            if expected.get(key) is not None and _ids(expected[key]) != _ids(found.get(key))
        ]
    return TextCheck("BOS and EOS of the configuration", STOPS, not wrong, "; ".join(wrong) or "the same ids")


def _settings(source: ResolvedSource, name: str) -> Mapping[str, Any]:
    path = source.model_dir / name
    found: Mapping[str, Any] = read_config(path) if path.is_file() else {}
    return found


def _ids(value: object) -> set[int]:
    values = value if isinstance(value, list) else [value]
    return {index for index in values if isinstance(index, int) and not isinstance(index, bool)}


def _first_difference(tokenizer: Tokenizer, expected: list[int], found: list[int]) -> str:
    same = 0
    while same < min(len(expected), len(found)) and expected[same] == found[same]:
        same += 1
    shown = [tokenizer.decode(ids[same : same + 4], skip_special_tokens=False) for ids in (found, expected)]
    return f"{shown[0]!r} instead of {shown[1]!r} at token {same}"
