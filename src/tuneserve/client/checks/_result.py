"""What a check can find, and what it is given to look at."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from tuneserve.client import ChatCompletion, OpenAIClient

Outcome = Literal["pass", "fail", "unsupported", "skipped"]

PROMPT = "Count from one to twenty in words."
GREEDY_TOKENS = 24


@dataclass(frozen=True)
class CheckResult:
    """What one check found: ``detail`` is one sentence, ``milliseconds`` how long it took."""

    name: str
    outcome: Outcome
    detail: str
    milliseconds: int


class Finding(Exception):  # noqa: N818
    """Ends a check with an outcome other than a pass."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail


def expect(condition: object, detail: str) -> None:
    """End the check as failed unless ``condition`` holds; ``detail`` says what was found instead."""
    if not condition:
        raise Finding("fail", detail)


class Target:
    """The server and model under test."""

    def __init__(self, client: OpenAIClient, model: str) -> None:
        self.client = client
        self.model = model

    def chat(self, prompt: str = PROMPT, **fields: Any) -> ChatCompletion:
        """Answer one message."""
        return self.client.chat(messages(prompt), model=self.model, **fields)

    @cached_property
    def greedy(self) -> ChatCompletion:
        """The answer at temperature 0 that other answers are held against; asked for once."""
        return self.chat(temperature=0, max_tokens=GREEDY_TOKENS)


def messages(prompt: str) -> list[dict[str, str]]:
    """Return a conversation of one message."""
    return [{"role": "user", "content": prompt}]


# Returns what to say of a pass; raises Finding otherwise.
Check = Callable[[Target], str]
