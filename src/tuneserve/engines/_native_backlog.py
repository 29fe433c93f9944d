"""What the native engine has sent for one sequence and nobody has taken yet."""

import asyncio
from collections import deque

from tuneserve.engines._native_wire import Embedding, Failed, Refused, Tokens

Answer = Tokens | Embedding | Refused | Failed


class Backlog(asyncio.Queue[Answer]):
    """A queue in which tokens that wait are one answer.

    So whoever reads slowly catches up in one step, and no sequence has the event loop to itself while it does.
    """

    def _put(self, item: Answer) -> None:
        waiting: deque[Answer] = self._queue  # type: ignore[attr-defined]
        if waiting and isinstance(last := waiting[-1], Tokens) and isinstance(item, Tokens):
            item = _joined(last, item)
            waiting.pop()
        waiting.append(item)


def _joined(first: Tokens, second: Tokens) -> Tokens:
    # In place, for a backlog grows by one token at a time.
    first.token_ids.extend(second.token_ids)
    if first.logprobs is not None and second.logprobs is not None:
        first.logprobs.extend(second.logprobs)
    return Tokens(
        first.id, first.token_ids, second.finish_reason, first.logprobs, first.prompt_logprobs, first.cached_tokens
    )
