"""Protects: checking a model takes the memory of a few of its layers, not of the model."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

_LAYERS, _HIDDEN, _INTERMEDIATE, _VOCABULARY = 24, 1024, 4096, 32000
_PROGRAM = """
import re, sys, torch
from pathlib import Path
import transformers, peft, peft.tuners.lora, tuneserve.parity
from transformers import AutoModelForCausalLM, LlamaForCausalLM
torch.set_num_threads(1)

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

before = peak()
report = tuneserve.parity.verify(*sys.argv[1:3])
assert report.passed, report.failures
print(peak() - before)
"""


def _write(directory: Path) -> int:
    """Write a checkpoint in bfloat16; return how many bytes it takes in float32."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": _HIDDEN,
        "intermediate_size": _INTERMEDIATE,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": _VOCABULARY,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    attention = {f"self_attn.{name}_proj": (_HIDDEN, _HIDDEN) for name in "qkvo"}
    wide = {f"mlp.{name}_proj": (_INTERMEDIATE, _HIDDEN) for name in ("gate", "up")}
    shapes: dict[str, tuple[int, ...]] = {**attention, **wide, "mlp.down_proj": (_HIDDEN, _INTERMEDIATE)}
    random = {shape: 0.02 * torch.randn(shape, dtype=torch.bfloat16) for shape in {*shapes.values()}}
    tensors = {"model.norm.weight": torch.ones(_HIDDEN)}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = 0.02 * torch.randn(_VOCABULARY, _HIDDEN, dtype=torch.bfloat16)
    for layer in range(_LAYERS):
        for name, shape in shapes.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = random[shape].clone()
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = torch.ones(_HIDDEN)
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return 4 * sum(tensor.numel() for tensor in tensors.values())


def test_a_check_needs_a_fraction_of_the_models_size(tmp_path: Path) -> None:
    whole = _write(tmp_path / "model")
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path / "model"), str(tmp_path / "model")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    # A layer is 67 MB in float32, the embedding as much in bfloat16, and the logits of each side 50 MB: 330 MB in most
    # runs, and up to 650 where the C library's allocator scatters what was freed.
    assert whole > 1_800_000_000
    assert int(result.stdout) < whole / 2
