"""Load on an OpenAI-compatible endpoint: one thread for each request on its way."""

import threading
import time
from collections.abc import Sequence
from contextlib import closing

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

    ``run_seconds`` bounds each run, whatever the server does.
    """

    vocab_size = _VOCABULARY

    def __init__(self, client: OpenAIClient, model: str | None = None, *, run_seconds: float = 600.0) -> None:
        """Ask for the first model that the server lists, unless one is given, and try a request.

        Raises:
            InputError: the server lists no model.
            ApiError, TransportError, ProtocolError: it does not answer as it should.
        """
        self._client = client
        self._seconds = run_seconds
        if model is None:
            models = client.models()
            if not models:
                raise InputError(f"{client.url} serves no model; start one, or name it with --model.")
            model = models[0].id
        self._model = model
        self.name = client.url
        self.about: dict[str, str] = {"model": model}
        self._options: tuple[str, ...] = ()
        self._find_options()

    def _find_options(self) -> None:
        """Find out which of the options that not every server has this one takes."""
        for self._options in _TRIED:
            try:
                self._ask([_VOCABULARY // 2] * 4, 2)
            except ApiError as error:
                if error.status not in _BAD_REQUEST or not self._options:
                    raise
            else:
                break
        lacking = ["stream_options"] if "stream_options" not in self._options else []
        if "ignore_eos" not in self._options:
            lacking.append("ignore_eos" if "min_tokens" in self._options else "min_tokens")
        self.about |= {f"without {name}": _WITHOUT[name] for name in lacking}

    def run(self, prompts: Sequence[list[int]], new_tokens: int, concurrency: int) -> list[Timed]:
        """Continue the prompts; see :class:`Target`. What a server does wrong is in the ``error`` of its request.

        Raises:
            TransportError: the run took longer than its bound.
        """
        results: list[Timed | None] = [None] * len(prompts)
        pending = iter(enumerate(prompts))
        lock = threading.Lock()

        def work() -> None:
            while True:
                with lock:
                    index, prompt = next(pending, (None, None))
                if index is None or prompt is None:
                    return
                sent = time.perf_counter()
                try:
                    results[index] = self._ask(prompt, new_tokens)
                except TuneserveError as error:
                    results[index] = Timed(sent, (), 0, str(error))

        # As daemons, because a thread that a server holds up must not hold up the end of the process.
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(concurrency, len(prompts)))]
        deadline = time.monotonic() + self._seconds
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                raise TransportError(
                    f"{self.name} did not answer {len(prompts)} requests in {self._seconds:g} seconds; "
                    "ask for less, or raise --run-seconds."
                )
        return [result for result in results if result is not None]

    def _ask(self, prompt: list[int], new_tokens: int) -> Timed:
        pieces: list[float] = []
        counted = None
        values = {"ignore_eos": True, "min_tokens": new_tokens, "stream_options": {"include_usage": True}}
        options = {name: values[name] for name in self._options}
        sent = time.perf_counter()
        chunks = self._client.completion_stream(
            prompt, model=self._model, max_tokens=new_tokens, temperature=0, **options
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
