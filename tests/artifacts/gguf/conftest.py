"""Tiny models of every family that GGUF files are written for, and llama.cpp to read them with."""

import ctypes
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from tuneserve.artifacts.gguf import GgufFormat, Imatrix
from tuneserve.checkpoint import open_checkpoint
from tuneserve.sources import read_config

VOCABULARY = 400
TEXT = "The quick brown fox's 12345 naïve cafés jump over the lazy dog.\n\n  Hello, world! Übergrößen 東京\t"
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
WINDOW = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
GRANITE = {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": None, "head_dim": 32},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "smollm3": {"num_hidden_layers": 5},
    "granite": GRANITE,
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 64, "norm_topk_prob": False},
    "qwen3_moe": {**EXPERTS, "head_dim": 32, "norm_topk_prob": True},
    "gemma": {"head_dim": 32},
    "gemma2": WINDOW,
    "gemma3_text": {**WINDOW, "num_hidden_layers": 7},
    "phi3": {"sliding_window": None},
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "vocab_size": VOCABULARY},
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 32,
        "sliding_window": 8,
        "tie_word_embeddings": False,
        "rope_parameters": ROPE,
    },
}


def write_tokenizer(directory: Path, pre_tokenizer: Any = None, **settings: Any) -> tokenizers.Tokenizer:
    """Train a byte-level tokenizer of at most ``VOCABULARY`` tokens and write its files."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 8,
        special_tokens=["<|end|>", "<|begin|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"bos_token": "<|begin|>", "eos_token": "<|end|>", **settings}
    (directory / "tokenizer_config.json").write_text(json.dumps(names))
    return tokenizer


def write_model(directory: Path, family: str, **changes: Any) -> torch.nn.Module:
    """Write a random model in bfloat16 with a tokenizer, and return it in float32 as Transformers loads it."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    fields = FAMILIES[family] if family == "gpt2" else {**SMALL, **FAMILIES[family]}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**{**fields, **changes}), dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        is_scale = "norm" in name or ".ln_" in name
        centre = 1.0 if is_scale and name.endswith("weight") and "gemma" not in family else 0.0
        parameter.data = centre + 0.08 * torch.randn(parameter.shape, generator=generator)
    model.to(torch.bfloat16).save_pretrained(directory)
    write_tokenizer(directory)
    loaded: torch.nn.Module = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return loaded.eval()


def write_gguf(model_dir: Path, out: Path, preset: str, imatrix: Imatrix | None = None, name: str = "tiny") -> Path:
    """Do what the executor does: each weight once, in file order, to where the format says."""
    checkpoint = open_checkpoint(model_dir)
    config = read_config(model_dir / "config.json")
    made = GgufFormat(checkpoint.tensors, config, model_dir, name, preset, imatrix=imatrix)
    ((file_name, planned),) = made.files.items()
    data = bytearray(planned.size)
    data[: len(planned.header)] = planned.header
    for weight in checkpoint.tensors:
        encoded = made.encode(weight, checkpoint.read(weight))
        for piece, values in zip(made.pieces(weight), encoded, strict=True):
            raw = values.flatten().view(torch.uint8).numpy()
            assert (piece.file, raw.nbytes) == (file_name, piece.nbytes)
            data[piece.offset : piece.offset + piece.nbytes] = raw.tobytes()
    out.mkdir(parents=True, exist_ok=True)
    (out / file_name).write_bytes(data)
    return out / file_name


class LlamaCpp:
    """A GGUF file opened by llama.cpp through its C interface."""

    def __init__(self, path: Path, *, vocab_only: bool = False) -> None:
        import llama_cpp

        self._c = llama_cpp
        options = llama_cpp.llama_model_default_params()
        options.vocab_only = vocab_only
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        assert self._model, f"llama.cpp does not load {path}"
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Return the ids of ``text``; special tokens written in it become their ids."""
        raw = text.encode()
        ids = (self._c.llama_token * (len(raw) + 16))()
        count = self._c.llama_tokenize(self._vocab, raw, len(raw), ids, len(ids), add_special, True)
        assert count >= 0
        return list(ids[:count])

    def is_end(self, token: int) -> bool:
        """Return whether generation ends with ``token``."""
        return bool(self._c.llama_vocab_is_eog(self._vocab, token))

    def logits(self, ids: Sequence[int], context: int = 256) -> torch.Tensor:
        """Return float32 of (len(ids), vocabulary), with the cache in float32 too."""
        options = self._c.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = context
        options.type_k = options.type_v = self._c.GGML_TYPE_F32
        options.n_threads = options.n_threads_batch = 1
        options.flash_attn_type = 0
        handle = self._c.llama_init_from_model(self._model, options)
        batch = self._c.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for position, token in enumerate(ids):
            batch.token[position], batch.pos[position], batch.logits[position] = token, position, 1
            batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
        assert self._c.llama_decode(handle, batch) == 0
        shape = (len(ids), self._c.llama_vocab_n_tokens(self._vocab))
        found = torch.from_numpy(np.ctypeslib.as_array(self._c.llama_get_logits(handle), shape=shape).copy())
        self._c.llama_batch_free(batch)
        self._c.llama_free(handle)
        return found

    def __del__(self) -> None:
        self._c.llama_model_free(self._model)


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_SILENT = _LOG(lambda *_: None)


@pytest.fixture(scope="session", autouse=True)
def silent_llama_cpp() -> Iterator[None]:
    """Drop llama.cpp's log, and close what its package leaves open."""
    import llama_cpp
    from llama_cpp import _utils

    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    yield
    _utils.outnull_file.close()
    _utils.errnull_file.close()


@pytest.fixture(scope="session")
def llama_cpp_file() -> type[LlamaCpp]:
    """Return :class:`LlamaCpp`."""
    return LlamaCpp


@pytest.fixture(scope="session")
def make_family() -> Callable[..., torch.nn.Module]:
    """Return :func:`write_model`."""
    return write_model


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., tokenizers.Tokenizer]:
    """Return :func:`write_tokenizer`."""
    return write_tokenizer


@pytest.fixture(scope="session")
def make_gguf() -> Callable[..., Path]:
    """Return :func:`write_gguf`."""
    return write_gguf
