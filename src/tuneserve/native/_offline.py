"""Requests in, outputs out, until all are answered."""

from collections.abc import Iterator, Sequence

from tuneserve.engines.contract import GenerationRequest
from tuneserve.errors import EngineError, RequestError
from tuneserve.native._engine import NativeCore, Output
from tuneserve.native._pooling import Pool

# Of one prompt.
MOST_SAMPLES = 1024


def outputs(core: NativeCore, requests: Sequence[GenerationRequest], pool: Pool | None = None) -> Iterator[Output]:
    """Yield each new token of each request; requests are cancelled when the iterator is closed.

    For ``pool`` see :meth:`NativeCore.add`.

    One that was cancelled on the way may still have tokens from the same step.

    Raises:
        RequestError: a request cannot be served.
        EngineError: the engine could not continue one.
    """
    added = []
    try:
        for request in requests:
            core.add(request, pool)
            added.append(request.id)
        while not core.idle:
            for output in core.step():
                if output.refused:
                    raise RequestError(output.refused, "grammar")
                if output.failed:
                    raise EngineError(output.failed)
                yield output
    finally:
        for request_id in added:
            core.cancel(request_id)
