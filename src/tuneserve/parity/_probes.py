"""The prompts on which models are compared, as one batch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tuneserve.errors import TextError
from tuneserve.parity._reference_text import Messages, encode, render
from tuneserve.parity._shell import quiet
from tuneserve.text import BackendError, guarded

# Different subjects, languages and shapes of text, so that no part of the model stays unused.
_QUESTIONS = (
    "What is the capital of France, and which river runs through it?",
    "My order 48213 arrived with a broken lid. I want my money back before Friday!",
    'Write a JSON object with the keys "name", "city" and "age" for a person you make up.',
    "Explain in two sentences why the sky is blue, for a child of six.",
    "def median(values: list[float]) -> float:\n    # complete this function",
    "Übersetze ins Deutsche: 'The train leaves at half past seven.' ¿Y en español? 日本語では？",
    "List three prime numbers over 100, then add them up: 101 + 103 + 107 = ?",
    "thx but u sent the WRONG size again... what now??",
)
_SYSTEM = "You are a careful assistant. Answer briefly and only with what was asked for."
_ROW = 48


@dataclass(frozen=True)
class Probes:
    """``ids`` (prompts, length), int64, padded on the right; ``mask``, of the same shape, is true where tokens are.

    ``random`` says that they are no text, for want of a tokenizer.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    random: bool

    def prompts(self) -> list[list[int]]:
        """Return the token ids of each prompt."""
        return [row[real].tolist() for row, real in zip(self.ids, self.mask, strict=True)]

    def where(self) -> list[tuple[int, int]]:
        """Return the prompt and position of each masked token, in the order of ``ids[mask]``."""
        return [(prompt, position) for prompt, position in self.mask.nonzero().tolist()]

    def targets(self) -> torch.Tensor:
        """Return the token that follows each masked position, in the order of ``ids[mask]``; -1 at a prompt's end."""
        following = torch.full_like(self.ids, -1)
        following[:, :-1] = torch.where(self.mask[:, 1:], self.ids[:, 1:], -1)
        return following[self.mask]


def make_probes(tokenizer: Any, vocab_size: int) -> Probes:
    """Return the probes: each question as a conversation, where there is a chat template, and all as plain text.

    The plain text is cut into pieces about as long as the conversations, so that the batch has little padding. Without
    a tokenizer the probes are random ids below ``vocab_size``, from a fixed seed.

    Raises:
        TextError: the tokenizer or its chat template takes no such text.
    """
    if tokenizer is None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(vocab_size, (len(_QUESTIONS), _ROW), generator=generator)
        return Probes(ids, torch.ones_like(ids, dtype=torch.bool), random=True)
    rows = [render(tokenizer, messages) for messages in conversations()] if tokenizer.chat_template else []
    plain = encode(tokenizer, "\n\n".join(_QUESTIONS))
    width = max(map(len, rows), default=_ROW)
    rows += [plain[start : start + width] for start in range(0, len(plain), width)]
    if (highest := max(map(max, filter(None, rows)), default=0)) >= vocab_size:
        raise TextError(
            f"the reference's tokenizer has a token {highest} and its model {vocab_size} of them; name the tokenizer "
            "that it was trained with."
        )
    return _padded([row for row in rows if len(row) > 1])


def conversations() -> list[Messages]:
    """Return the questions as messages, every other one after a system message."""
    found = []
    for index, question in enumerate(_QUESTIONS):
        messages = [{"role": "user", "content": question}]
        if index % 2:
            messages.insert(0, {"role": "system", "content": _SYSTEM})
        found.append(messages)
    return found


def load_tokenizer(directory: Path) -> Any:
    """Return the Transformers tokenizer in ``directory``, None where there is none.

    Raises:
        TextError: Transformers does not load it.
    """
    from transformers import AutoTokenizer

    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet():
            return guarded(lambda: AutoTokenizer.from_pretrained(directory, **options))
    except BackendError as error:
        raise TextError(
            f"the tokenizer in {directory} is not one that Transformers loads ({error}); download or save it again."
        ) from None


def _padded(rows: list[list[int]]) -> Probes:
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = True
    return Probes(ids, mask, random=False)
