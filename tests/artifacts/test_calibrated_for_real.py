"""Protects: llmcompressor itself, in its own environment, still makes models that load and are still the same model.

Not part of ``make test``: the environment is a download of 1.5 GB, which ``make test-calibrated`` installs first.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from tuneserve.artifacts.calibrated import CALIBRATED, open_calibrator, run_calibrated
from tuneserve.checkpoint import open_checkpoint
from tuneserve.errors import EngineError
from tuneserve.sources import resolve

pytestmark = pytest.mark.calibrated

Make = Callable[..., Path]
VOCABULARY = 256
# How much logits may change, relative to their size: measured were 0.08 in 8 bits and 0.25 to 0.33 in 4.
LOGITS_ERROR = {"fp8_static": 0.12, "gptq": 0.4, "awq": 0.4, "nvfp4": 0.4}
# The same of each weight, of which AWQ also scales the columns. E4M3 errs by 0.027 and 4 bits by 0.1; GPTQ trades error
# in a weight for less in what comes out.
WEIGHT_ERROR = {"fp8_static": 0.035, "gptq": 0.4, "nvfp4": 0.12}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    draw = random.Random(0)
    samples = ["".join(chr(draw.randrange(33, 127)) for _ in range(60)) for _ in range(20)]
    path = tmp_path / "own.txt"
    path.write_text("\n\n".join(samples))
    return path


def calibrate(method: str, model_dir: Path, text: Path, out: Path) -> dict[str, Any]:
    vocabulary = {chr(code): code for code in range(32, 127)}
    tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[])).save(str(model_dir / "tokenizer.json"))
    calibrator = open_calibrator([method], resolve(model_dir), text=text)
    assert calibrator is not None
    return run_calibrated(method, model_dir, out, calibrator, max_shard_bytes=5_000_000, report=lambda _: None)


def load(directory: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True, **options)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
@pytest.mark.parametrize("method", CALIBRATED)
def test_the_quantised_model_loads_and_is_near_the_merged_one(
    method: str, make_llama: Make, text: Path, tmp_path: Path
) -> None:
    from transformers import CompressedTensorsConfig

    merged, out = make_llama("merged"), tmp_path / "out"
    facts = calibrate(method, merged, text, out)
    assert facts["quantised_modules"] == 14
    assert facts["group_size"] == {"awq": 32, "gptq": 32, "nvfp4": 16, "fp8_static": None}[method]
    # Packed zero points (awq) load only dequantised: compressed-tensors 0.20 shapes an empty module's wrongly.
    expected, found = load(merged), load(out, quantization_config=CompressedTensorsConfig(dequantize=True))
    # Of the characters that it was calibrated on.
    ids = torch.randint(33, 127, (4, 32), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert 0 < error(found(input_ids=ids).logits, expected(input_ids=ids).logits) < LOGITS_ERROR[method]
    if method in WEIGHT_ERROR:
        weights = found.state_dict()
        linear = {name: weight for name, weight in expected.state_dict().items() if "_proj" in name}
        assert all(0 < error(weights[name], weight) < WEIGHT_ERROR[method] for name, weight in linear.items())

    calibrate(method, merged, text, tmp_path / "again")
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()


def write_with_transformers(directory: Path, family: str) -> Path:
    """Write a random model of another kind: norms that add one to their weights, or experts."""
    import transformers

    shapes: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCABULARY, "max_position_embeddings": 128,
        "pad_token_id": 0,
    }  # fmt: skip
    configs = {
        "gemma": lambda: transformers.Gemma3TextConfig(**shapes),
        "experts": lambda: transformers.Qwen3MoeConfig(
            **shapes, moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2
        ),
        "renamed experts": lambda: transformers.MixtralConfig(**shapes, num_local_experts=2),
    }
    model = transformers.AutoModelForCausalLM.from_config(configs[family](), dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(("family", "modules"), [("gemma", 14), ("experts", 32)])
def test_what_is_not_quantised_stays_as_it_was(family: str, modules: int, text: Path, tmp_path: Path) -> None:
    merged = write_with_transformers(tmp_path / "merged", family)
    facts = calibrate("gptq", merged, text, tmp_path / "out")
    assert facts["quantised_modules"] == modules
    before, after = open_checkpoint(merged), open_checkpoint(tmp_path / "out")
    kept = before.tensors.keys() & after.tensors.keys()
    assert len(kept) == len(before.tensors) - modules
    assert all(torch.equal(before.read(name), after.read(name)) for name in kept)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config.pop("quantization_config")
    assert config == json.loads((merged / "config.json").read_text())


def test_experts_that_could_not_be_written_as_they_were_are_refused(text: Path, tmp_path: Path) -> None:
    merged = write_with_transformers(tmp_path / "merged", "renamed experts")
    with pytest.raises(EngineError, match="no way to write this family's experts"):
        calibrate("gptq", merged, text, tmp_path / "out")
    assert not (tmp_path / "out").exists()
