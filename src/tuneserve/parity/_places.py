"""Divergences with the tokens after which they were measured."""

from collections.abc import Iterable
from typing import Any

from tuneserve.parity._probes import Probes
from tuneserve.parity._report import Place


def places_of(probes: Probes, measured: Iterable[tuple[tuple[int, int], float]], tokenizer: Any) -> tuple[Place, ...]:
    """Return what was ``measured``, a KL for a prompt and position, with the texts of its tokens."""

    def text(prompt: int, position: int) -> str:
        token = int(probes.ids[prompt, position])
        return f"{token} " if tokenizer is None or probes.random else str(tokenizer.decode([token]))

    return tuple(Place(*where, text(*where), kl) for where, kl in measured)
