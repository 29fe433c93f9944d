"""What the gateway and the native engine's process say to each other: length-prefixed msgpack over a Unix socket."""

import struct

import msgspec

from tuneserve.engines.contract import (
    EngineInfo,
    EngineStats,
    FinishReason,
    GenerationRequest,
    Pooling,
    TokenLogprob,
)
from tuneserve.errors import EngineError, InputError, TuneserveError

HEADER = struct.Struct(">I")


class Generate(msgspec.Struct, frozen=True, tag=True):
    """Continue a sequence."""

    request: GenerationRequest


class Embed(msgspec.Struct, frozen=True, tag=True):
    """Send the pooled hidden states of a prompt; see :class:`~tuneserve.engines.contract.Embedder`."""

    id: str
    prompt_ids: list[int]
    pooling: Pooling
    adapter: str | None


class LoadAdapter(msgspec.Struct, frozen=True, tag=True):
    """Serve an adapter; ``number`` is the answer's too."""

    number: int
    name: str
    path: str


class UnloadAdapter(msgspec.Struct, frozen=True, tag=True):
    """Drop an adapter when its sequences have ended; ``number`` is the answer's too."""

    number: int
    name: str


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Forget a sequence; nothing more is sent about it."""

    id: str


class AskStats(msgspec.Struct, frozen=True, tag=True):
    """Send the load."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded."""

    info: EngineInfo


class NotStarted(msgspec.Struct, frozen=True, tag=True):
    """The model cannot be served; ``is_input`` tells the user's mistakes from the engine's."""

    message: str
    is_input: bool

    def error(self) -> TuneserveError:
        """Return the exception to raise for it."""
        return InputError(self.message) if self.is_input else EngineError(self.message)


class Tokens(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """New tokens of a sequence; see :class:`~tuneserve.engines.contract.TokenChunk`."""

    id: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    cached_tokens: int | None = None


class Embedding(msgspec.Struct, frozen=True, tag=True):
    """The vector of a prompt."""

    id: str
    vector: list[float]


class Adapters(msgspec.Struct, frozen=True, tag=True):
    """An adapter was loaded or dropped, or could not be, for a reason; ``names`` are those that there are now."""

    number: int
    names: tuple[str, ...]
    problem: str | None = None


class Refused(msgspec.Struct, frozen=True, tag=True):
    """A request that can never be served."""

    id: str
    message: str
    param: str | None


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A sequence that the engine could not continue."""

    id: str
    message: str


class Stats(msgspec.Struct, frozen=True, tag=True):
    """The load."""

    stats: EngineStats


ToEngine = Generate | Embed | Cancel | AskStats | LoadAdapter | UnloadAdapter
FromEngine = Ready | NotStarted | Tokens | Embedding | Refused | Failed | Stats | Adapters

_encoder = msgspec.msgpack.Encoder()


def frame(message: msgspec.Struct) -> bytes:
    """Return a message as it goes over the wire."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body
