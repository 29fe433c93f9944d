"""Protects: an export's memory is a few tensors, whatever the size of the model and the number of methods."""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

PROGRAM = """
import re, sys
import torch, transformers
from tuneserve import artifacts
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1000
artifacts.plan_export(sys.argv[1], method=sys.argv[3:])
before = peak()
artifacts.export(sys.argv[1], sys.argv[2], method=sys.argv[3:], verify=False)
print(peak() - before)
"""


def test_peak_memory_is_a_few_tensors(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    config = {
        "hidden_size": 2048, "intermediate_size": 4096, "num_hidden_layers": 10, "num_attention_heads": 16,
        "num_key_value_heads": 16, "vocab_size": 1000, "model_type": "llama", "architectures": ["LlamaForCausalLM"],
        "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "max_position_embeddings": 128, "dtype": "bfloat16",
    }  # fmt: skip
    import json

    base.mkdir()
    adapter.mkdir()
    (base / "config.json").write_text(json.dumps(config))
    zeros: dict[str, torch.Tensor] = {"model.embed_tokens.weight": torch.zeros(1000, 2048, dtype=torch.bfloat16)}
    deltas = {}
    for layer in range(10):
        prefix = f"model.layers.{layer}"
        shapes = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (2048, 2048))
        for name, shape in shapes.items():
            zeros[f"{prefix}.self_attn.{name}.weight"] = torch.zeros(shape, dtype=torch.bfloat16)
        for name, shape in {"gate_proj": (4096, 2048), "up_proj": (4096, 2048), "down_proj": (2048, 4096)}.items():
            zeros[f"{prefix}.mlp.{name}.weight"] = torch.ones(shape, dtype=torch.bfloat16)
            key = f"base_model.model.{prefix}.mlp.{name}"
            deltas[f"{key}.lora_A.weight"] = torch.ones(8, shape[1])
            deltas[f"{key}.lora_B.weight"] = torch.ones(shape[0], 8)
        for name in ("input_layernorm", "post_attention_layernorm"):
            zeros[f"{prefix}.{name}.weight"] = torch.ones(2048, dtype=torch.bfloat16)
    zeros["model.norm.weight"] = torch.ones(2048, dtype=torch.bfloat16)
    save_file(zeros, base / "model.safetensors")
    save_file(deltas, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "r": 8, "lora_alpha": 8, "base_model_name_or_path": str(base),
        "target_modules": ["gate_proj", "up_proj", "down_proj"],
    }))  # fmt: skip
    total = (base / "model.safetensors").stat().st_size / 1e6
    assert total > 800
    command = [sys.executable, "-c", PROGRAM, str(adapter), str(tmp_path / "out")]
    result = subprocess.run(
        [*command, "merged_16bit", "fp8", "merged_4bit"], capture_output=True, text=True, check=True
    )
    assert float(result.stdout) < 350
