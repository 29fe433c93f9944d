"""Load on an OpenAI-compatible endpoint: one thread for each request on its way."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial

from tuneserve.bench._load import Load, Prompt
from tuneserve.bench._result import Timed
from tuneserve.client import ApiError, OpenAIClient, ProtocolError, TransportError
from tuneserve.errors import InputError, TuneserveError

# Most vocabularies are larger; which one the server has cannot be asked.
_VOCABULARY = 10_000
# Some servers send pieces without text beside those that were asked for.
_MOST_EXTRA_PIECES = 64
_BAD_REQUEST = (400, 422)
# Not every server has all of these; of the first two, either keeps an answer from ending early.
_WITHOUT = {
    "ignore_eos": "min_tokens is asked for instead",
    "min_tokens": "answers may end early",
    "stream_options": "tokens are counted by pieces",
}
_TRIED = (
    ("ignore_eos", "stream_options"), ("min_tokens", "stream_options"), ("stream_options",), ("ignore_eos",),
    ("min_tokens",), (),
)  # fmt: skip


class ServerTarget:
    """An endpoint, asked through ``/v1/completions`` with streaming.

    ``models`` share the requests, so adapters that a server has by name can be measured together. ``run_seconds``
    bounds each run, whatever the server does.
    """

    vocab_size = _VOCABULARY

    def __init__(self, client: OpenAIClient, models: Sequence[str] = (), *, run_seconds: float = 600.0) -> None:
        """Ask for the first model that the server lists, unless some are given, and try a request of each.

        Raises:
            InputError: the server lists no model.
            ApiError, TransportError, ProtocolError: it does not answer as it should.
        """
        self._client = client
        self._seconds = run_seconds
        if not models:
            listed = client.models()
            if not listed:
                raise InputError(f"{client.url} serves no model; start one, or name it with --model.")
            models = (listed[0].id,)
        self.models = tuple(models)
        self.name = client.url
        self.about: dict[str, str] = {"model": ", ".join(models)}
        self._options: tuple[str, ...] = ()
        self._find_options()
        for other in self.models[1:]:
            self._ask(Prompt([_VOCABULARY // 2] * 4, other), 2)

    def _find_options(self) -> None:
        """Find out which of the options that not every server has this one takes."""
        for self._options in _TRIED:
            try:
                self._ask(Prompt([_VOCABULARY // 2] * 4, self.models[0]), 2)
            except ApiError as error:
                if error.status not in _BAD_REQUEST or not self._options:
                    raise
            else:
                break
        lacking = ["stream_options"] if "stream_options" not in self._options else []
        if "ignore_eos" not in self._options:
            lacking.append("ignore_eos" if "min_tokens" in self._options else "min_tokens")
        self.about |= {f"without {name}": _WITHOUT[name] for name in lacking}

    def run(self, load: Load, done: Callable[[], None]) -> list[Timed]:
        """Continue the prompts; see :class:`Target`. What a server does wrong is in the ``error`` of its request.

        Raises:
            TransportError: the run took longer than its bound.
        """
        results: list[Timed | None] = [None] * len(load.prompts)
        started, deadline = time.perf_counter(), time.monotonic() + self._seconds

        def ask(index: int, sent: float | None) -> None:
            """Ask for one answer; from when it should have been sent on its time counts, also where we were late."""
            try:
                results[index] = self._ask(load.prompts[index], load.new_tokens, sent)
            except TuneserveError as error:
                results[index] = Timed(time.perf_counter() if sent is None else sent, (), 0, str(error))
            done()

        if load.arrivals is None:
            pending, lock = iter(range(len(load.prompts))), threading.Lock()
            count = min(load.concurrency, len(load.prompts))
            threads = [_started(lambda: _work(pending, lock, lambda index: ask(index, None))) for _ in range(count)]
        else:
            threads = []
            for index, arrival in enumerate(load.arrivals):
                time.sleep(max(0.0, min(started + arrival - time.perf_counter(), deadline - time.monotonic())))
                if time.monotonic() >= deadline:
                    raise self._too_long(len(load.prompts))
                threads.append(_started(partial(ask, index, started + arrival)))
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                raise self._too_long(len(load.prompts))
        return [result for result in results if result is not None]

    def bandwidth_limit(self, sequences: int, tokens: int) -> None:  # noqa: ARG002
        """Return None: what a server computes, and on what, is not known."""
        return

    def _too_long(self, requests: int) -> TransportError:
        return TransportError(
            f"{self.name} did not answer {requests} requests in {self._seconds:g} seconds; "
            "ask for less, or raise --run-seconds."
        )

    def _ask(self, prompt: Prompt, new_tokens: int, sent: float | None = None) -> Timed:
        pieces: list[float] = []
        counted = None
        values = {"ignore_eos": True, "min_tokens": new_tokens, "stream_options": {"include_usage": True}}
        options = {name: values[name] for name in self._options}
        sent = time.perf_counter() if sent is None else sent
        chunks = self._client.completion_stream(
            prompt.ids, model=prompt.model or self.models[0], max_tokens=new_tokens, temperature=0, **options
        )
        with closing(chunks):
            for chunk in chunks:
                if chunk.usage is not None:
                    counted = chunk.usage.completion_tokens
                if chunk.choices and (chunk.choices[0].text or chunk.choices[0].finish_reason is None):
                    pieces.append(time.perf_counter())
                if len(pieces) > new_tokens + _MOST_EXTRA_PIECES:
                    raise ProtocolError(
                        f"{self.name} sent more than the {new_tokens} tokens that it was asked for; see its log."
                    )
        tokens = len(pieces) if counted is None else counted
        if not pieces or not 1 <= tokens <= new_tokens:
            raise ProtocolError(
                f"{self.name} sent {len(pieces)} pieces and counted {tokens} tokens where {new_tokens} were asked for; "
                "see its log."
            )
        return Timed(sent, tuple(pieces), tokens)


def _started(work: Callable[[], None]) -> threading.Thread:
    # As a daemon, because a thread that a server holds up must not hold up the end of the process.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def _work(pending: Iterator[int], lock: threading.Lock, ask: Callable[[int], None]) -> None:
    while True:
        with lock:
            index = next(pending, None)
        if index is None:
            return
        ask(index)
