"""What is known of one HTTP request: for its line in the log, its trace, its key's limits, and the queue."""

import re
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from uuid import uuid4

from tuneserve.gateway._keys import Key
from tuneserve.gateway._limits import Allowance

_WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_MAX_PROMPT_BYTES = 1 << 16


@dataclass
class Record:
    """One request; times are :func:`time.monotonic`, ``sequences`` those that it has asked the engine for.

    ``status`` is None until the answer begins.
    """

    id: str
    method: str
    path: str
    arrived: float = field(default_factory=time.monotonic)
    started_at: float = field(default_factory=time.time)
    key: Key | None = None
    allowance: Allowance | None = None
    model: str | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0
    sequences: int = 0
    first_token: float | None = None
    status: int | None = None
    body: bytearray | None = None

    def prompted(self, tokens: int) -> None:
        """Note one more sequence, with so many tokens of prompt."""
        self.sequences += 1
        self.prompt_tokens += tokens
        if self.allowance is not None:
            self.allowance.spend(tokens)

    def generated(self, tokens: int) -> None:
        """Note new tokens."""
        if tokens and self.first_token is None:
            self.first_token = time.monotonic()
        self.generated_tokens += tokens
        if self.allowance is not None:
            self.allowance.spend(tokens)

    def keep_body(self, part: bytes) -> None:
        """Keep what has come of the request's body, up to 64 KiB, where prompts are logged."""
        if self.body is not None:
            self.body += part[: _MAX_PROMPT_BYTES - len(self.body)]


current: ContextVar[Record | None] = ContextVar("current", default=None)


def request_id(given: str | None) -> str:
    """Return the client's own id if it is well-formed (letters, digits, ``.``, ``_`` and ``-``), else a new one."""
    if given is not None and _WELL_FORMED.fullmatch(given):
        return given
    return f"req_{uuid4().hex}"
