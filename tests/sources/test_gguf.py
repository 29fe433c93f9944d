"""A GGUF file is a source like any other: llama.cpp computes from it what Transformers does from what is read of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tests.conftest import GGUF_MODELS
from tuneserve.errors import InputError, SourceError
from tuneserve.sources import open_model, resolve

Write = Callable[..., Path]
IDS = [258, 5, 77, 200, 31, 9, 8, 257, 256, 4, 3, 99]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path / "cache"))


def _as_directory(path: Path, target: Path) -> Path:
    source = resolve(path)
    weights, _ = open_model(source)
    shutil.copytree(source.model_dir, target)
    tensors = {name: weights.read(name) for name in weights.tensors}
    assert all(
        (t.shape, t.dtype) == (weights.tensors[n].shape, _DTYPES[weights.tensors[n].dtype]) for n, t in tensors.items()
    )
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _logits(directory: Path) -> torch.Tensor:
    model, report = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([IDS])).logits[0]
    return logits


# llama.cpp looks the GELU of Gemma and GPT-2 up in a table of 16-bit values.
@pytest.mark.parametrize(
    ("architecture", "near"), [("llama", 2e-4), ("qwen3moe", 2e-4), ("gemma2", 5e-3), ("gpt2", 5e-3), ("gpt-oss", 2e-4)]
)
def test_the_model_is_the_one_that_llama_cpp_runs(
    tmp_path: Path, write_gguf_model: Write, llama_logits: Callable[..., torch.Tensor], architecture: str, near: float
) -> None:
    path = write_gguf_model(tmp_path / "model.gguf", architecture)
    ours, theirs = _logits(_as_directory(path, tmp_path / "model")), llama_logits(path, IDS)
    # float32 on both sides.
    assert (ours - theirs).abs().max() < near < 0.1 * theirs.std()


@pytest.mark.parametrize(("kind", "dtype"), [("F32", "F32"), ("F16", "F16"), ("BF16", "BF16"), ("Q8_0", "BF16")])
def test_weights_are_sixteen_bits_unless_all_are_thirty_two(
    tmp_path: Path, write_gguf_model: Write, kind: str, dtype: str
) -> None:
    path = write_gguf_model(tmp_path / "model.gguf", kind=kind)
    weights, config = open_model(resolve(path))
    assert {spec.dtype for spec in weights.tensors.values()} == {dtype}
    assert config["dtype"] == str(_DTYPES[dtype]).removeprefix("torch.")
    exact = write_gguf_model(tmp_path / "exact.gguf")
    full, _ = open_model(resolve(exact))
    for name in weights.tensors:
        near, true = weights.read(name).float(), full.read(name)
        assert (near - true).abs().max() < 0.01 * true.abs().max(), name


def test_scaling_of_rotary_positions_is_found_from_its_factors(
    tmp_path: Path, write_gguf_model: Write, llama_logits: Callable[..., torch.Tensor]
) -> None:
    from tuneserve.sources import _gguf_rope

    factors = [_gguf_rope._llama3_factor(500000.0 ** (-2 * i / 128), 32.0, 8192) for i in range(64)]
    assert factors[0] == 1.0 and factors[-1] == pytest.approx(32.0) and 1 < factors[32] < 32
    found = _rope_of(tmp_path, factors)
    assert found == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    # The last two would take minutes to compare, and overflow.
    for theta, rotated in ((500000.0, 128), (500000.0, 1 << 24), (5e-324, 128)):
        with pytest.raises(SourceError, match="not Llama 3's"):
            _rope_of(tmp_path, [1.0, 2.0] * 32, theta, rotated)


def _rope_of(directory: Path, factors: list[float], theta: float = 500000.0, rotated: int = 128) -> dict[str, Any]:
    import gguf
    import numpy as np

    from tuneserve.checkpoint import open_gguf
    from tuneserve.sources import _gguf_rope

    writer = gguf.GGUFWriter(directory / "rope.gguf", "llama")
    writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return _gguf_rope._llama3(open_gguf(directory / "rope.gguf"), theta, rotated)


def test_a_file_is_a_base_for_an_adapter(tmp_path: Path, write_gguf_model: Write, write_adapter: Write) -> None:
    path = write_gguf_model(tmp_path / "base.gguf")
    directory = _as_directory(path, tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", directory)
    source = resolve(adapter, base=path)
    assert (source.weights_file, source.adapter_dir, source.base_name) == (path, adapter, str(path))
    weights, config = open_model(source)
    assert config["model_type"] == "llama" and weights.files == (path,)


def test_the_description_is_made_once_and_follows_the_file(tmp_path: Path, write_gguf_model: Write) -> None:
    path = write_gguf_model(tmp_path / "model.gguf")
    first = resolve(path)
    assert first.name == "model" and resolve(path).model_dir == first.model_dir
    assert json.loads((first.model_dir / "generation_config.json").read_text()) == {
        "bos_token_id": 258,
        "eos_token_id": 259,
    }
    write_gguf_model(path, **{"tokenizer.ggml.eot_token_id": 7})
    second = resolve(path)
    assert second.model_dir != first.model_dir
    assert json.loads((second.model_dir / "generation_config.json").read_text())["eos_token_id"] == [259, 7]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.type": "adapter"}, "of the type 'adapter'"),
        ({"llama.attention.head_count": 0}, "should be a whole number"),
        ({"llama.attention.head_count": 7, "llama.attention.key_length": 16}, "does not fit"),
        ({"llama.block_count": "many"}, "should be a whole number"),
        ({"llama.rope.scaling.type": "sorcery"}, "without the factors"),
        ({"tokenizer.ggml.eos_token_id": 100_000}, "malformed token ids"),
        ({"llama.block_count": 2**24}, "from 1 to 4096"),
    ],
)
def test_a_model_that_makes_no_sense_is_refused(
    tmp_path: Path, write_gguf_model: Write, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_model(resolve(write_gguf_model(tmp_path / "model.gguf", **changes)))


@pytest.mark.parametrize(("architecture", "tensor"), [("gpt2", "attn_qkv"), ("gpt-oss", "ffn_gate_exps")])
def test_a_vector_in_the_place_of_a_matrix_is_refused(
    tmp_path: Path, write_gguf_model: Write, monkeypatch: pytest.MonkeyPatch, architecture: str, tensor: str
) -> None:
    changed = {**GGUF_MODELS[architecture][1], tensor: (64,)}
    monkeypatch.setitem(GGUF_MODELS, architecture, (GGUF_MODELS[architecture][0], changed))
    with pytest.raises(InputError, match=r"does not fit|impossible shape"):
        open_model(resolve(write_gguf_model(tmp_path / "model.gguf", architecture)))


def test_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(SourceError, match=r"'mamba'.*original directory"):
        resolve(tmp_path / "m.gguf")


def test_a_directory_opens_by_the_same_door(tmp_path: Path, write_model: Write) -> None:
    directory = write_model(tmp_path / "model")
    weights, config = open_model(resolve(directory))
    assert config["model_type"] == "llama" and weights.files == (directory / "model.safetensors",)
    assert weights.read("model.norm.weight").dtype == torch.bfloat16


def test_a_directory_of_gguf_files_says_which_to_name(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").touch()
    with pytest.raises(SourceError, match=r"point to .*x\.gguf\.$"):
        resolve(tmp_path)
