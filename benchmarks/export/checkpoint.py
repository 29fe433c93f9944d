"""Write a checkpoint of random weights in a real model's shape, and a random LoRA adapter for all its linear layers.

How long a merge takes depends on shapes and not on values, so this stands in where no weights can be downloaded.

    python benchmarks/export/checkpoint.py llama-3.2-1b DIRECTORY

With ``--method`` the linear weights of the base are quantised; to be quick, those of one shape are then all the same.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from tuneserve.checkpoint import SafetensorsWriter, TensorSpec, write_json
from tuneserve.checkpoint.quantised import CT_ENCODERS, Bnb4bitEncoder, Encoder


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    def config(self) -> dict[str, object]:
        """Return its ``config.json``."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            "dtype": "bfloat16",
        }

    def linears(self) -> dict[str, tuple[int, int]]:
        """Return the linear layers of one decoder layer with their (out, in) sizes."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (queries, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, queries),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }


SHAPES = {
    "llama-3.2-1b": Shape(2048, 8192, 16, 32, 8, 64, 128256, True),
    "llama-3.2-3b": Shape(3072, 8192, 28, 24, 8, 128, 128256, True),
    "llama-3.1-8b": Shape(4096, 14336, 32, 32, 8, 128, 128256, False),
    "smollm2-135m": Shape(576, 1536, 30, 9, 3, 64, 49152, True),
}


def write(shape: Shape, directory: Path, rank: int, method: str | None) -> None:
    """Write ``directory/base`` and ``directory/adapter``."""
    base, adapter = directory / "base", directory / "adapter"
    base.mkdir(parents=True)
    adapter.mkdir()
    weights: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocabulary, shape.hidden)}
    deltas: dict[str, tuple[int, ...]] = {}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        for name, (rows, columns) in shape.linears().items():
            weights[f"{prefix}{name}.weight"] = (rows, columns)
            deltas[f"base_model.model.{prefix}{name}.lora_A.weight"] = (rank, columns)
            deltas[f"base_model.model.{prefix}{name}.lora_B.weight"] = (rows, rank)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}{norm}.weight"] = (shape.hidden,)
    weights["model.norm.weight"] = (shape.hidden,)
    if not shape.tied:
        weights["lm_head.weight"] = (shape.vocabulary, shape.hidden)
    linears = [TensorSpec(name, "BF16", weights[name]) for name in weights if name.endswith("_proj.weight")]
    encoder = None if method is None else _encoder(method, linears)
    write_json(base / "config.json", encoder.config(shape.config()) if encoder else shape.config())
    if encoder:
        _write_quantised(base / "model.safetensors", weights, encoder)
    else:
        _write_random(base / "model.safetensors", weights)
    _write_random(adapter / "adapter_model.safetensors", deltas)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base.resolve()),
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(name.rpartition(".")[2] for name in shape.linears()),
        "inference_mode": True,
    }
    (adapter / "adapter_config.json").write_text(json.dumps(config, indent=1))


def _write_random(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    generator = torch.Generator().manual_seed(0)
    specs = [TensorSpec(name, "BF16", size) for name, size in shapes.items()]
    with SafetensorsWriter(path, specs) as writer:
        for name, size in shapes.items():
            values = torch.randn(size, generator=generator, dtype=torch.bfloat16) * 0.02
            writer.write(name, values.view(-1).view(torch.uint8).numpy().data)


def _encoder(method: str, linears: list[TensorSpec]) -> Encoder:
    if method == "nf4":
        return Bnb4bitEncoder([spec.name for spec in linears])
    return CT_ENCODERS[method](linears, ["lm_head"])


def _write_quantised(path: Path, shapes: dict[str, tuple[int, ...]], encoder: Encoder) -> None:
    generator = torch.Generator().manual_seed(0)
    specs = [TensorSpec(name, "BF16", size) for name, size in shapes.items()]
    made: dict[tuple[object, ...], tuple[torch.Tensor, ...]] = {}
    with SafetensorsWriter(path, [part for spec in specs for part in encoder.stored(spec)]) as writer:
        for spec in specs:
            stored = encoder.stored(spec)
            alike = spec.shape, len(stored)
            if alike not in made:
                made[alike] = encoder.encode(spec, torch.randn(spec.shape, generator=generator).bfloat16() * 0.02)
            for part, values in zip(stored, made[alike], strict=True):
                writer.write(part.name, values.contiguous().view(-1).view(torch.uint8).numpy().data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--method", choices=["nf4", "int4", "w8a16", "int8", "fp8", "fp8_block"])
    options = parser.parse_args()
    write(SHAPES[options.shape], options.directory, options.rank, options.method)
