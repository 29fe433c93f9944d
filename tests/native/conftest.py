"""A tiny random model that has a tokenizer, and the log-probabilities that Transformers gives."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

TEXT = '{"name": "Ada", "age": 36} the cat sat on the mat and the dog ran after the cat, 1234567890 true false null'


def write_byte_tokenizer(directory: Path, size: int) -> None:
    """Write a byte-level BPE of ``size`` tokens: ``<pad>``, ``<s>``, ``</s>``, all bytes, and some merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    backend.train_from_iterator([TEXT] * 3, trainer)
    assert backend.get_vocab_size() == size
    backend.save(str(directory / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(names))


@pytest.fixture(scope="session")
def write_tokenizer() -> Callable[[Path, int], None]:
    """Return :func:`write_byte_tokenizer`."""
    return write_byte_tokenizer


@pytest.fixture(scope="session")
def talker(write_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny float32 model of 300 tokens with a tokenizer."""
    directory = tmp_path_factory.mktemp("models") / "talker"
    write_model(directory, dtype=torch.float32, vocab_size=300, max_position_embeddings=512)
    write_byte_tokenizer(directory, 300)
    return directory


@pytest.fixture
def reference_logprobs() -> Callable[[Path, list[int]], torch.Tensor]:
    """Return what Transformers gives after each token, (tokens, vocabulary)."""

    def compute(model_dir: Path, ids: list[int]) -> torch.Tensor:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
        with torch.inference_mode():
            logprobs: torch.Tensor = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return logprobs

    return compute
