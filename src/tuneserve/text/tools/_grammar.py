"""The grammar of an output that must call."""

import re
from collections.abc import Sequence

from tuneserve.errors import RequestError
from tuneserve.text.tools._definitions import ToolDefinition
from tuneserve.text.tools._format import ReasoningFormat, ToolFormat
from tuneserve.text.tools._rules import marker


def grammar(
    tool_format: ToolFormat | None,
    tools: Sequence[ToolDefinition],
    choice: str,
    parallel: bool,
    reasoning: ReasoningFormat | None = None,
    prompt: str = "",
) -> str | None:
    """Return the grammar, in llguidance's lark form, of outputs that call as asked; None where they need not.

    Args:
        tool_format: the model's.
        tools: what may be called.
        choice: ``auto`` and ``none`` ask for nothing, ``required`` for a call, another text for one of that function.
        parallel: whether there may be several calls.
        reasoning: thoughts may come first; they are not bounded.
        prompt: the rendered prompt, which may have begun or ended the thoughts.

    Raises:
        RequestError: the model's format is not known, or there is no such function.
    """
    if choice in ("auto", "none"):
        return None
    if tool_format is None:
        message = "this model's chat template shows no form of calls that can be enforced; send tool_choice auto."
        raise RequestError(message, "tool_choice")
    chosen = [tool for tool in tools if choice in ("required", tool.name)]
    if not chosen:
        what = "there are no tools" if choice == "required" else f"no tool is named {choice[:64]!r}"
        raise RequestError(f"a call is asked for and {what}; send the tool or another tool_choice.", "tool_choice")
    start = "thinking calls" if reasoning and reasoning.name != "harmony" else "calls"
    thinking = _thinking(reasoning, prompt) if reasoning and reasoning.name != "harmony" else ""
    return f"start: {start}\n{thinking}{tool_format.rules(chosen, parallel)}"


def _thinking(form: ReasoningFormat, prompt: str) -> str:
    if prompt.rstrip().endswith(form.end):
        return 'thinking: ""\n'
    # Special tokens are not text, so text cannot run past one.
    if form.end in form.tokens:
        thoughts = f"thoughts: /(?s:.*)/ {marker(form.end, form.tokens)} /\\n{{0,2}}/\n"
    else:
        pattern = re.escape(form.end).replace("/", "\\/")
        thoughts = f"thoughts: thought /\\n{{0,2}}/\nthought[lazy]: /(?s:.*){pattern}/\n"
    if form.opened_by(prompt):
        return "thinking: thoughts\n" + thoughts
    return f"thinking: ({marker(form.start, form.tokens)} thoughts)?\n" + thoughts
