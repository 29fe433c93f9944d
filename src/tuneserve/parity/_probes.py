"""The prompts on which models are compared."""

from pathlib import Path
from typing import Any

import torch

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


def probe_ids(tokenizer: Any, vocab_size: int) -> list[torch.Tensor]:
    """Return the probes as token ids, each of shape (1, length), int64.

    Each question is taken once as a conversation, where the tokenizer has a chat template, and once as plain text.
    Without a tokenizer the probes are random ids below ``vocab_size``, from a fixed seed.
    """
    if tokenizer is None:
        generator = torch.Generator().manual_seed(0)
        return [torch.randint(vocab_size, (1, 48), generator=generator) for _ in _QUESTIONS]
    probes = []
    for index, question in enumerate(_QUESTIONS):
        if tokenizer.chat_template:
            messages = [{"role": "user", "content": question}]
            if index % 2:
                messages.insert(0, {"role": "system", "content": _SYSTEM})
            probes.append(_conversation(tokenizer, messages))
        probes.append(tokenizer(question, return_tensors="pt").input_ids)
    return [ids for ids in probes if ids.shape[1] > 1]


def load_tokenizer(directory: Path) -> Any:
    """Return the Transformers tokenizer in ``directory``, None where there is none."""
    from transformers import AutoTokenizer

    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


def _conversation(tokenizer: Any, messages: list[dict[str, str]]) -> torch.Tensor:
    from jinja2 import TemplateError

    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    try:
        ids: torch.Tensor = tokenizer.apply_chat_template(messages, **options).input_ids
    except TemplateError:
        # Some templates take no system message.
        ids = tokenizer.apply_chat_template(messages[-1:], **options).input_ids
    return ids
