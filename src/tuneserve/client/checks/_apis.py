"""Other APIs than chat and plain completions: missing, refused, or in their form."""

import base64
import binascii
import struct
from typing import Any

from tuneserve.client.checks._ask import Json, ask, at, events
from tuneserve.client.checks._result import PROMPT, Finding, Target, expect, messages

_RESPONSES = "/v1/responses"
_MESSAGES = "/v1/messages"
_EMBEDDINGS = "/v1/embeddings"
_TEXT = "Smørrebrød in Oslo"


def _response(target: Target, **fields: Any) -> Json:
    return ask(target, _RESPONSES, {"input": PROMPT, "temperature": 0, "max_output_tokens": 16, **fields})


def _output_text(response: Json) -> str:
    items = [item for item in at(response, "output") or [] if at(item, "type") == "message"]
    text = at(items, 0, "content", 0, "text")
    expect(isinstance(text, str) and text, "the output has no message with a text.")
    return str(text)


def responses(target: Target) -> str:
    """A response has items, a status and a usage."""
    answer = _response(target, store=False)
    expect(at(answer, "object") == "response", "the object is not 'response'.")
    status = at(answer, "status")
    expect(status in ("completed", "incomplete"), f"the status is {status!r}.")
    usage = at(answer, "usage") or {}
    total = (at(usage, "input_tokens") or 0) + (at(usage, "output_tokens") or 0)
    expect(total and total == at(usage, "total_tokens"), "the usage does not add up.")
    return f"it answered with {len(_output_text(answer))} characters."


def responses_streaming(target: Target) -> str:
    """Events are numbered from 0, begin with response.created, and add up to the whole text."""
    body = {"input": PROMPT, "temperature": 0, "max_output_tokens": 16, "store": False}
    found = events(target, _RESPONSES, body)
    expect(all(name == at(data, "type") for name, data in found), "an event's name is not its type.")
    numbers = [at(data, "sequence_number") for _, data in found]
    expect(numbers == list(range(len(numbers))), "the sequence numbers do not count from 0.")
    expect(found[0][0] == "response.created", f"the first event is {found[0][0]!r}.")
    expect(found[-1][0] in ("response.completed", "response.incomplete"), f"the last event is {found[-1][0]!r}.")
    text = "".join(str(at(data, "delta")) for name, data in found if name == "response.output_text.delta")
    expect(text == _output_text(at(found[-1][1], "response") or {}), "the deltas are not the text of the response.")
    return f"it came in {len(found)} events."


def previous_response(target: Target) -> str:
    """A response that was stored can be gone on from, and one that was not cannot."""
    first = _response(target, store=True)
    second = _response(target, input="Go on.", previous_response_id=at(first, "id"))
    more = (at(second, "usage", "input_tokens") or 0) > (at(first, "usage", "input_tokens") or 0)
    expect(more, "what was said before is not part of the prompt.")
    return "a stored response is gone on from."


def embeddings(target: Target) -> str:
    """Two texts have two vectors of one length, and an equal text an equal vector."""
    vectors = [at(each, "embedding") for each in at(_embedded(target, input=[_TEXT, "x", _TEXT]), "data") or []]
    expect(len(vectors) == 3 and all(isinstance(vector, list) for vector in vectors), "there is not a vector per text.")
    expect(len({len(vector) for vector in vectors}) == 1, "the vectors have different lengths.")
    apart = max(abs(one - other) for one, other in zip(vectors[0], vectors[2], strict=True))
    expect(apart < 1e-2, "equal texts have different vectors.")
    expect(vectors[0] != vectors[1], "different texts have the same vector.")
    return f"vectors have {len(vectors[0])} numbers."


def embeddings_base64(target: Target) -> str:
    """As base64, the vector is the same."""
    plain = at(_embedded(target, input=_TEXT), "data", 0, "embedding") or []
    packed = at(_embedded(target, input=_TEXT, encoding_format="base64"), "data", 0, "embedding")
    try:
        data = base64.b64decode(packed, validate=True)
        values = struct.unpack(f"<{len(data) // 4}f", data)
    except (binascii.Error, TypeError, ValueError, struct.error):
        raise Finding("fail", "the vector is not base64 of 32-bit floats.") from None
    expect(len(values) == len(plain), "the vector has another length as base64.")
    expect(all(abs(a - b) < 1e-2 for a, b in zip(values, plain, strict=True)), "the vector is another one as base64.")
    return "the vector is the same as base64."


def _embedded(target: Target, **fields: Any) -> Json:
    return ask(target, _EMBEDDINGS, fields)


def anthropic_messages(target: Target) -> str:
    """A message has blocks and a stop_reason."""
    answer = ask(target, _MESSAGES, {"messages": messages(PROMPT), "max_tokens": 12, "temperature": 0})
    expect((at(answer, "type"), at(answer, "role")) == ("message", "assistant"), "it is no message of the assistant.")
    text = "".join(at(block, "text") or "" for block in at(answer, "content") or [])
    expect(text, "the message has no text.")
    reason = at(answer, "stop_reason")
    expect(reason in ("end_turn", "max_tokens"), f"the stop_reason is {reason!r}.")
    expect(at(answer, "usage", "input_tokens") and at(answer, "usage", "output_tokens"), "there is no usage.")
    return f"it answered with {len(text)} characters."


def anthropic_streaming(target: Target) -> str:
    """Events open, fill and close blocks between message_start and message_stop."""
    found = events(target, _MESSAGES, {"messages": messages(PROMPT), "max_tokens": 12, "temperature": 0})
    names = [name for name, _ in found if name != "ping"]
    expect(names[0] == "message_start" and names[-1] == "message_stop", "it does not start and stop as a message.")
    expect(names.count("content_block_start") == names.count("content_block_stop") > 0, "a block is left open.")
    expect("message_delta" in names, "there is no message_delta with the stop_reason.")
    return f"it came in {len(found)} events."


def count_tokens(target: Target) -> str:
    """The count of tokens is that of the message's usage."""
    conversation = {"messages": messages(PROMPT)}
    counted = at(ask(target, f"{_MESSAGES}/count_tokens", conversation), "input_tokens")
    usage = at(ask(target, _MESSAGES, {**conversation, "max_tokens": 1}), "usage")
    # What was read from the cache or put there is counted apart.
    kinds = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    used = sum(at(usage, kind) or 0 for kind in kinds)
    expect(counted == used, f"{counted} tokens are counted and {used} used.")
    return f"{counted} tokens are counted and used."


def tokenize(target: Target) -> str:
    """A text survives being made tokens and text again."""
    tokens = at(ask(target, "/tokenize", {"prompt": _TEXT, "add_special_tokens": False}), "tokens")
    expect(isinstance(tokens, list) and tokens, "there are no tokens.")
    text = at(ask(target, "/detokenize", {"tokens": tokens}), "prompt")
    expect(isinstance(text, str) and text.strip() == _TEXT, "the text is another one after /tokenize and /detokenize.")
    return f"a text is the same after {len(tokens)} tokens."


def openapi(target: Target) -> str:
    """``/openapi.json`` describes the routes."""
    answer = target.client.get("/openapi.json")
    if answer.status != 200:
        raise Finding("unsupported", "there is no /openapi.json.")
    expect(b"/v1/chat/completions" in answer.body, "/openapi.json does not describe /v1/chat/completions.")
    return "it describes /v1/chat/completions."
