"""Protects that the engine is free of a sequence before its last text is sent."""

import time

import pytest

from tests.gateway.conftest import FakeEngine
from tuneserve.engines.contract import SamplingParams
from tuneserve.gateway import ServedModel
from tuneserve.gateway._generate import Job, Piece, generate
from tuneserve.gateway._metrics import Metrics


@pytest.mark.anyio
async def test_a_stopped_sequence_is_cancelled_before_its_end_is_sent(served: ServedModel, engine: FakeEngine) -> None:
    pieces: list[Piece] = []

    async def emit(_: int, piece: Piece) -> None:
        assert bool(engine.cancelled) == (piece.finish_reason is not None)
        pieces.append(piece)

    await generate(served, [Job([1], SamplingParams(), ("o,",))], Metrics(), time.monotonic(), emit)
    assert "".join(piece.text for piece in pieces) == "Hell"
