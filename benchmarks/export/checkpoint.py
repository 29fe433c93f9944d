"""Write a checkpoint of random weights in a real model's shape, and a random LoRA adapter for all its linear layers.

How long a merge takes depends on shapes and not on values, so this stands in where no weights can be downloaded.

    python benchmarks/export/checkpoint.py llama-3.2-1b DIRECTORY

With ``--method`` the linear weights of the base are quantised; to be quick, those of one shape are then all the same.
``--layers`` is for fewer layers than the model has.
"""

import argparse
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tuneserve.checkpoint import SafetensorsWriter, TensorSpec, write_json
from tuneserve.checkpoint.quantised import CT_ENCODERS, Bnb4bitEncoder, Encoder

# Drawn once, for the experts of a model are too many numbers; each is a part of them.
_POOL = 1 << 27


@dataclass(frozen=True)
class Mixture:
    """The experts of each layer of a Qwen 3 MoE, or of a Mixtral, whose ``norms`` of queries and keys are missing."""

    count: int
    per_token: int
    width: int
    norms: bool

    def names(self) -> tuple[str, str, tuple[str, str, str]]:
        """Return the router, one expert, and its gate, up and down."""
        if self.norms:
            return "mlp.gate", "mlp.experts.{}", ("gate_proj", "up_proj", "down_proj")
        return "block_sparse_moe.gate", "block_sparse_moe.experts.{}", ("w1", "w3", "w2")

    def config(self) -> dict[str, object]:
        """Return what is in its ``config.json`` beyond what a Llama's has."""
        if self.norms:
            return {
                "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": self.count,
                "num_experts_per_tok": self.per_token, "moe_intermediate_size": self.width, "norm_topk_prob": True,
                "decoder_sparse_step": 1, "mlp_only_layers": [],
            }  # fmt: skip
        return {
            "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": self.count,
            "num_experts_per_tok": self.per_token, "sliding_window": None,
        }  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama, or of a model with experts in each layer."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    mixture: Mixture | None = None

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
            **(self.mixture.config() if self.mixture else {}),
        }

    def linears(self) -> dict[str, tuple[int, int]]:
        """Return the linear layers of one decoder layer with their (out, in) sizes."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = {
            "self_attn.q_proj": (queries, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, queries),
        }
        if self.mixture:
            return attention
        return attention | {
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    def others(self) -> dict[str, tuple[int, ...]]:
        """Return the other tensors of one decoder layer: its norms, its router and its experts."""
        found: dict[str, tuple[int, ...]] = {
            f"{norm}.weight": (self.hidden,) for norm in ("input_layernorm", "post_attention_layernorm")
        }
        if (mixture := self.mixture) is None:
            return found
        if mixture.norms:
            found |= {f"self_attn.{name}_norm.weight": (self.head_dim,) for name in ("q", "k")}
        router, expert, (gate, up, down) = mixture.names()
        found[f"{router}.weight"] = mixture.count, self.hidden
        for prefix in map(expert.format, range(mixture.count)):
            found |= {f"{prefix}.{name}.weight": (mixture.width, self.hidden) for name in (gate, up)}
            found[f"{prefix}.{down}.weight"] = self.hidden, mixture.width
        return found


SHAPES = {
    "llama-3.2-1b": Shape(2048, 8192, 16, 32, 8, 64, 128256, True),
    "llama-3.2-3b": Shape(3072, 8192, 28, 24, 8, 128, 128256, True),
    "llama-3.1-8b": Shape(4096, 14336, 32, 32, 8, 128, 128256, False),
    "smollm2-135m": Shape(576, 1536, 30, 9, 3, 64, 49152, True),
    "qwen3-30b-a3b": Shape(2048, 6144, 48, 32, 4, 128, 151936, False, Mixture(128, 8, 768, norms=True)),
    "mixtral-8x7b": Shape(4096, 14336, 32, 32, 8, 128, 32000, False, Mixture(8, 2, 14336, norms=False)),
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
        weights |= {f"{prefix}{name}": size for name, size in shape.others().items()}
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
    pool = torch.empty(0)
    with SafetensorsWriter(path, specs) as writer:
        for name, size in shapes.items():
            if ".experts." in name:
                if not len(pool):
                    pool = torch.randn(_POOL, generator=generator, dtype=torch.bfloat16) * 0.02
                first = int(torch.randint(_POOL - math.prod(size) + 1, (), generator=generator))
                values = pool[first : first + math.prod(size)]
            else:
                values = torch.randn(size, generator=generator, dtype=torch.bfloat16) * _spread(name)
            writer.write(name, values.view(-1).view(torch.uint8).numpy().data)


def _spread(name: str) -> float:
    # A router that tells its experts apart as trained ones do, behind norms that are as small as the other weights.
    return 3.0 if name.endswith((".mlp.gate.weight", ".block_sparse_moe.gate.weight")) else 0.02


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
    parser.add_argument("--layers", type=int)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--method", choices=["nf4", "int4", "w8a16", "int8", "fp8", "fp8_block"])
    options = parser.parse_args()
    chosen = SHAPES[options.shape]
    write(replace(chosen, layers=options.layers or chosen.layers), options.directory, options.rank, options.method)
