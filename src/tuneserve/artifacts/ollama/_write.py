"""Turns as a template in Go's text/template, of which only what ``_evaluate`` understands is used.

Ollama gives a template the messages, consecutive ones of one role joined, and all system messages joined as
``.System`` (its template/template.go). Texts are written as string constants, so that no white space is lost.
"""

import json

from tuneserve.artifacts.ollama._turns import Turns


def go_template(turns: Turns, *, anywhere: bool, prefill: bool) -> str:
    """Write the template.

    Args:
        turns: what stands around the messages.
        anywhere: whether system messages may stand later than first.
        prefill: whether an answer that the conversation ends with may be continued.
    """
    lines = []
    if turns.preamble and turns.system == "last":
        lines.append(_text(turns.preamble))
    elif turns.preamble:
        lines.append("{{- if not .System }}" + _text(turns.preamble) + "{{ end }}")
    if _first_matters(turns):
        lines.append("{{- $first := true }}")
    lines += [
        "{{- range $i, $_ := .Messages }}",
        "{{- $last := eq (len (slice $.Messages $i)) 1 }}",
        '{{- if eq .Role "user" }}' + _user(turns),
        '{{- else if eq .Role "assistant" }}' + _assistant(turns, prefill),
        '{{- else if eq .Role "system" }}' + _system(turns, anywhere),
        "{{- else }}" + _refusal("this model's template has only messages of the system, the user and the assistant"),
        "{{- end }}",
        "{{- end }}",
    ]
    return "\n".join(lines)


def _first_matters(turns: Turns) -> bool:
    return bool(turns.first_open) or turns.system == "first"


def _user(turns: Turns) -> str:
    opening = _text(turns.user_open)
    if turns.first_open:
        opening = "{{ if and $first (not $.System) }}" + _text(turns.first_open) + "{{ else }}" + opening + "{{ end }}"
    if turns.system in ("first", "last"):
        with_system = _text(turns.system_open) + "{{ $.System }}" + _text(turns.system_close)
        opening = "{{ if and $" + turns.system + " $.System }}" + with_system + "{{ else }}" + opening + "{{ end }}"
    used = "{{ $first = false }}" if _first_matters(turns) else ""
    ending = "{{ if $last }}" + _text(turns.generation) + "{{ end }}" if turns.generation else ""
    return opening + used + "{{ .Content }}" + _text(turns.user_close) + ending


def _assistant(turns: Turns, prefill: bool) -> str:
    refusal = (
        "" if prefill else "{{ if $last }}" + _refusal("this model's template does not continue answers") + "{{ end }}"
    )
    closing = "{{ if not $last }}" + _text(turns.assistant_close) + "{{ end }}" if turns.assistant_close else ""
    return refusal + _text(turns.assistant_open) + "{{ .Content }}" + closing


def _system(turns: Turns, anywhere: bool) -> str:
    if turns.system == "refused":
        return _refusal("this model's template has no system messages")
    later = "" if anywhere else "{{ if $i }}" + _refusal("a system message must be the first") + "{{ end }}"
    if turns.system != "turn":
        return later
    return later + _text(turns.system_open) + "{{ .Content }}" + _text(turns.system_close)


def _text(text: str) -> str:
    """Write a text as a constant; JSON's escapes are among Go's."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""


def _refusal(message: str) -> str:
    """Let rendering fail, with an error that quotes the message."""
    return "{{ index " + json.dumps(message) + " 1000 }}"
