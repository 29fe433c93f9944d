"""Divergences with the tokens after which they were measured."""

from collections.abc import Iterable
from typing import Any

from tuneserve.parity._probes import Probes
from tuneserve.parity._report import Place

_CUT = "\ufffd"


def places_of(probes: Probes, measured: Iterable[tuple[tuple[int, int], float]], tokenizer: Any) -> tuple[Place, ...]:
    """Return what was ``measured``, a KL for a prompt and position, with the texts of its tokens."""
    if tokenizer is None or probes.random:
        texts = [[f"{token} " for token in prompt] for prompt in probes.prompts()]
    else:
        texts = [_texts(prompt, tokenizer) for prompt in probes.prompts()]
    return tuple(Place(prompt, position, texts[prompt][position], kl) for (prompt, position), kl in measured)


def _texts(ids: list[int], tokenizer: Any) -> list[str]:
    """Return what each token adds to the text; one that ends within a character leaves it to the one that ends it."""
    found, known = [], ""
    for count in range(1, len(ids) + 1):
        text = str(tokenizer.decode(ids[:count]))
        whole = text.startswith(known) and not text.endswith(_CUT)
        found.append(text[len(known) :] if whole else "")
        known = text if whole else known
    return found
