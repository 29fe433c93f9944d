"""Which way of writing calls and thoughts a model was trained on, by its chat template."""

import re

from tuneserve.text._tokenizer import Tokenizer
from tuneserve.text.tools._format import ReasoningFormat, ToolFormat, marker_ids
from tuneserve.text.tools._harmony import MARKERS, Harmony
from tuneserve.text.tools._json_formats import JsonList, LlamaJson, MistralNamed, TaggedJson
from tuneserve.text.tools._pythonic import Pythonic
from tuneserve.text.tools._xml import TaggedXml

_BRACKETS = (("<|python_start|>", "<|python_end|>"), ("<|tool_call_start|>", "<|tool_call_end|>"))
_PYTHONIC = re.compile(r"\[\s*func\w*\(\w+\s*=")
_LLAMA = re.compile(r"""["']name["']\s*:[^\n]{0,200}["']parameters["']\s*:""")
_THOUGHTS = (("[THINK]", "[/THINK]"), ("<think>", "</think>"))


def tool_format(template_source: str, tokenizer: Tokenizer) -> ToolFormat | None:
    """Return how the model writes calls; None where its template shows no way known here."""
    source = template_source
    if _is_harmony(source):
        return Harmony(marker_ids(tokenizer, MARKERS))
    if "tools" not in source:
        return None
    if "[TOOL_CALLS]" in source:
        tokens = marker_ids(tokenizer, ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"))
        if "[ARGS]" in source:
            return MistralNamed("mistral-named", tokens, with_id="[CALL_ID]" in source)
        return JsonList("mistral", tokens, ("[TOOL_CALLS]",))
    tags = marker_ids(tokenizer, ("<tool_call>", "</tool_call>"))
    if "<function=" in source and "<parameter=" in source:
        return TaggedXml(tags)
    if "<|tool_call|>" in source:
        markers = ("<|tool_call|>", "<tool_call>")
        return JsonList("granite", marker_ids(tokenizer, markers), markers, ends=("<|/tool_call|>", "</tool_call>"))
    if "<tool_call>" in source:
        return TaggedJson("hermes", tags)
    for start, end in _BRACKETS:
        if start in source:
            return Pythonic(marker_ids(tokenizer, (start, end)), (start,), (end,))
    if _PYTHONIC.search(source):
        return Pythonic({})
    if "<|python_tag|>" in source or _LLAMA.search(source):
        return LlamaJson("llama", marker_ids(tokenizer, ("<|python_tag|>",)))
    return None


def reasoning_format(template_source: str, tokenizer: Tokenizer) -> ReasoningFormat | None:
    """Return how the model sets its thoughts apart; None where its template shows no way known here."""
    if _is_harmony(template_source):
        return ReasoningFormat("harmony", "", "", marker_ids(tokenizer, MARKERS))
    for start, end in _THOUGHTS:
        if start in template_source or end in template_source:
            return ReasoningFormat(start.strip("<>[]").lower(), start, end, marker_ids(tokenizer, (start, end)))
    return None


def _is_harmony(source: str) -> bool:
    return "<|channel|>" in source and "<|message|>" in source
