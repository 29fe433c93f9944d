"""Checks the GPU's kernels on the shapes of every dense family against float32, and times one of them.

The models have the widths of published ones, a few layers and random weights. In each, prompts and decoding in captured
graphs have to be about as near to float32 as PyTorch's operations are in bfloat16, also with adapters unmerged and with
weights in 8 bits. Then a whole random Gemma 2 2B decodes, by the kernels and by PyTorch. Appends lines to
``families.jsonl``, or to the file that ``--out`` names.

    python benchmarks/gpu/families.py
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton

from tuneserve.adapters import linear_shapes
from tuneserve.checkpoint import TensorSpec
from tuneserve.kernels.gpu.packed import pack, unpacked
from tuneserve.kernels.paged_attention import PagedAttention
from tuneserve.model import AdapterWeights, Decoder, Delta, DenseLinear, Weights, load_weights
from tuneserve.model._gpu import GpuDecoder
from tuneserve.model._gpu_packed import quantise
from tuneserve.model._gpu_reasons import gpu_reasons_against
from tuneserve.spec import ModelSpec, QueryScaling, read_spec, tensor_shapes

CUDA, BLOCK = torch.device("cuda"), 16
CONTEXT, PROMPT, STEPS, WINDOW = 512, 200, 3, 96
LAYERS, VOCABULARY = 4, 8192
# Weights in 8 bits are rounded once more, to what the matrix units take.
ALLOWED = {"16 bits": 1.15, "adapters": 1.15, "int8": 1.3}
ALTERNATING = ["sliding_attention", "full_attention"] * 2
GEMMA2 = {
    "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
    "num_key_value_heads": 8,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": LLAMA,
    "gemma-2-2b": GEMMA2,
    "gemma-3-4b": {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256, "layer_types": ALTERNATING,
    },
    "phi-3-mini": {
        "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "phi-4-mini": {
        "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24,
        "num_key_value_heads": 8, "partial_rotary_factor": 0.75, "tie_word_embeddings": True,
    },
    "smollm3-3b": {
        "model_type": "smollm3", "hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16,
        "num_key_value_heads": 4,
    },
    "granite-3.3-2b": {
        "model_type": "granite", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
        "num_key_value_heads": 8, "embedding_multiplier": 12.0, "residual_multiplier": 0.22,
        "attention_multiplier": 0.015625, "logits_scaling": 8.0,
    },
    "heads-80": {**LLAMA, "hidden_size": 2560, "num_key_value_heads": 32, "head_dim": 80},
    "heads-192": {**LLAMA, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 192},
    "sinks": LLAMA,
}  # fmt: skip


def spec_of(name: str, **changes: Any) -> ModelSpec:
    """Return a family's model, of few layers unless told otherwise."""
    fields = {
        "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY, "max_position_embeddings": 8192,
        "sliding_window": WINDOW, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    own = FAMILIES[name]
    if own["model_type"] in ("llama", "granite", "smollm3"):
        del fields["sliding_window"]
    spec = read_spec({**fields, **own, **changes})
    if name == "sinks":
        spec = replace(spec, sinks=True, query_scaling=QueryScaling(beta=0.4, original_length=64))
    return spec


@dataclass
class RandomWeights:
    """A reader of weights that are drawn when they are read, the same each time."""

    shapes: dict[str, tuple[int, ...]]
    plus_one: bool
    files: tuple[Path, ...] = (Path("random"),)

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        """What there is."""
        return {name: TensorSpec(name, "BF16", shape) for name, shape in self.shapes.items()}

    def read(self, name: str) -> torch.Tensor:
        """Draw a weight, in bfloat16."""
        shape = self.shapes[name]
        generator = torch.Generator(CUDA).manual_seed(zlib.crc32(name.encode()))
        drawn = torch.randn(shape, generator=generator, device=CUDA)
        drawn = drawn * 0.1 if len(shape) == 1 else drawn * shape[-1] ** -0.5
        return (drawn + (name.endswith("norm.weight") and not self.plus_one)).bfloat16()


def weights_of(spec: ModelSpec, dtype: torch.dtype) -> Weights:
    """Return random weights of a model."""
    return load_weights(spec, RandomWeights(tensor_shapes(spec), spec.norm_plus_one), dtype, CUDA)


def adapter_of(spec: ModelSpec, seed: int, dtype: torch.dtype) -> AdapterWeights:
    """Return an adapter of rank 8 of all linear layers; each fused layer is one piece."""
    generator = torch.Generator(CUDA).manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        drawn = torch.randn(shape, generator=generator, device=CUDA) * shape[-1] ** -0.5 / 2
        return drawn.bfloat16().to(dtype)

    shapes = linear_shapes(spec).items()
    return {key: (Delta(0, random(8, inputs), random(outputs, 8)),) for key, (outputs, inputs) in shapes}


@dataclass
class Batch:
    """What both decoders take."""

    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    block_tables: torch.Tensor
    counts: list[int]
    adapters: torch.Tensor | None = None


class Sequences:
    """Sequences of one length, their cache, and what a decoder says of their last tokens."""

    def __init__(self, decoder: Decoder | GpuDecoder, count: int, context: int = CONTEXT) -> None:
        self.decoder, self.count, self.length = decoder, count, 0
        spec, blocks = decoder.spec, context // BLOCK
        self.tables = torch.randperm(count * blocks, generator=torch.Generator().manual_seed(count))
        self.tables = self.tables.add(1).view(count, blocks).int().to(CUDA)
        shape = (spec.layers, count * blocks + 1, spec.kv_heads, BLOCK, spec.head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=decoder.dtype, device=CUDA) for _ in range(2))

    def batch(self, ids: torch.Tensor, adapters: bool = False) -> Batch:
        """Append as many tokens to each, (sequences, tokens)."""
        count, new = ids.shape
        places = torch.arange(self.length, self.length + new, device=CUDA)
        self.length += new
        slots = self.tables[:, places // BLOCK].long() * BLOCK + places % BLOCK
        return Batch(
            ids=ids.flatten(),
            positions=places.repeat(count),
            slots=slots.flatten(),
            starts=torch.arange(0, count * new + 1, new, dtype=torch.int32, device=CUDA),
            lengths=torch.full((count,), self.length, dtype=torch.int32, device=CUDA),
            block_tables=self.tables,
            counts=[new] * count,
            # Of the base, and of two adapters.
            adapters=((torch.arange(count, device=CUDA) + 1) % 3 - 1).int().repeat_interleave(new)
            if adapters
            else None,
        )

    def logits(self, batch: Batch) -> torch.Tensor:
        """Return the logits of the last token of each sequence."""
        last = batch.starts[1:].long() - 1
        if isinstance(self.decoder, GpuDecoder):
            return self.decoder.logits(self.decoder.forward(batch, self.keys, self.values)[last])
        with self.decoder.rows_of(batch.adapters):
            hidden = self.decoder.forward(batch.ids, batch.positions, self.attention(batch))
        return self.decoder.logits(hidden[last])

    def attention(self, batch: Batch) -> Callable[..., torch.Tensor]:
        """Return the attention of PyTorch's operations over the cache."""
        decodes = len(batch.counts) if max(batch.counts) == 1 else 0
        paged = PagedAttention(batch.slots, batch.starts, batch.lengths, batch.block_tables, decodes, BLOCK)
        return lambda layer, *given, **how: paged(self.keys[layer], self.values[layer], *given, **how)


def rounded(weights: Weights) -> Weights:
    """Return the weights that the kernels compute with in 8 bits."""

    def of(linear: Any) -> DenseLinear:
        return DenseLinear(unpacked(pack(quantise(linear.weight, "int8"))).to(linear.weight.dtype), linear.bias)

    layers = tuple(
        replace(one, **{name: of(getattr(one, name)) for name in ("qkv", "output", "gate_up", "down")})
        for one in weights.layers
    )
    return replace(weights, layers=layers, head=of(weights.head))


@torch.inference_mode()
def check(name: str) -> list[dict[str, Any]]:
    """Return the relative errors of a family's kernels and of PyTorch in bfloat16."""
    spec, lines = spec_of(name), []
    brain = partial(weights_of, spec, torch.bfloat16)
    assert gpu_reasons_against(spec, brain()) == []
    for kind in ALLOWED if name in ("gemma-2-2b", "phi-3-mini") else ["16 bits"]:
        exact, plain = (weights_of(spec, dtype) for dtype in (torch.float32, torch.bfloat16))
        if kind == "int8":
            exact, plain = rounded(exact), rounded(plain)
        for count in (1, 3, 40):
            ours = GpuDecoder(spec, brain(), CONTEXT, 40, bits="int8" if kind == "int8" else None)
            decoders = [Decoder(spec, exact, CONTEXT), Decoder(spec, plain, CONTEXT), ours]
            runs = [Sequences(decoder, count) for decoder in decoders]
            if kind == "adapters":
                for decoder in decoders:
                    for slot in (0, 1):
                        decoder.put_adapter(slot, adapter_of(spec, slot, decoder.dtype))
            ids = torch.randint(3, VOCABULARY, (count, PROMPT), generator=torch.Generator().manual_seed(count)).to(CUDA)
            errors: list[list[float]] = [[], []]
            for _ in range(1 + STEPS):
                expected, *found = (run.logits(run.batch(ids, kind == "adapters")) for run in runs)
                for mine, logits in zip(errors, found, strict=True):
                    mine.append(float((logits - expected).norm() / expected.norm()))
                ids = expected.argmax(-1)[:, None]
            in_16_bits, of_ours = (statistics.mean(mine) for mine in errors)
            lines.append({
                "family": name, "weights": kind, "batch": count, "error": of_ours, "error_of_pytorch": in_16_bits,
                "ok": of_ours < ALLOWED[kind] * in_16_bits,
            })  # fmt: skip
    return lines


def tell(lines: list[dict[str, Any]]) -> None:
    """Print lines for the process that gathers them."""
    for line in lines:
        sys.stdout.write(json.dumps(line) + "\n")


@torch.inference_mode()
def measure() -> list[dict[str, Any]]:
    """Return the tokens per second of a whole Gemma 2 2B by the kernels, and of PyTorch's operations."""
    spec, lines = spec_of("gemma-2-2b", num_hidden_layers=26, vocab_size=256_000, sliding_window=4096), []
    weights = weights_of(spec, torch.bfloat16)
    for count, context in ((1, 256), (8, 256), (32, 256), (128, 256), (1, 8192), (8, 8192)):
        decoder = GpuDecoder(spec, weights, context, count)
        run = Sequences(decoder, count, context)
        # What is in the cache before does not matter to the time.
        run.length = context - 128
        decoder.decode_greedily(run.batch(torch.full((count, 1), 7, device=CUDA)), run.keys, run.values, 8)
        seconds = timed(decoder.go_on_greedily, run.tables, run.keys, run.values, 32) / 32
        lines.append({
            "by": "kernels", "batch": count, "context": context, "tok_per_s": round(count / seconds, 1),
            "gb_of_weights_per_s": round(weights.nbytes / seconds / 1e9),
        })  # fmt: skip
    for count in (1, 32):
        eager = Sequences(Decoder(spec, weights, 256), count, 256)
        eager.length = 128
        batch = eager.batch(torch.full((count, 1), 7, device=CUDA))
        eager.logits(batch)
        lines.append({"by": "pytorch", "batch": count, "tok_per_s": round(count / timed(eager.logits, batch), 1)})
    prompt = Sequences(GpuDecoder(spec, weights, 4096, 8), 1, 4096)
    batches = [prompt.batch(torch.full((1, 512), 7, device=CUDA)) for _ in range(8)]
    prompt.logits(batches[0])
    seconds = timed(lambda: [prompt.logits(batch) for batch in batches])
    lines.append({"by": "kernels", "prompt": 4096, "tok_per_s": round(4096 / seconds)})
    return lines


def timed(run: Callable[..., object], *given: object) -> float:
    """Return the seconds that ``run`` takes on the device with what it is given, the median of three."""
    found = []
    for _ in range(3):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run(*given)
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def main() -> int:
    """Check all families side by side, each in a process of its own, then measure; append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    parser.add_argument("--only", help="one family, or 'measure'; prints its lines")
    options = parser.parse_args()
    if options.only:
        tell(measure() if options.only == "measure" else check(options.only))
        return 0
    facts = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__,
             "python": platform.python_version()}  # fmt: skip
    failed = False
    with ThreadPoolExecutor(len(FAMILIES)) as pool, options.out.open("a") as out:
        for name, done in [*zip(FAMILIES, pool.map(alone, FAMILIES), strict=True), ("measure", None)]:
            done = done or alone(name)
            failed = failed or done.returncode != 0
            sys.stdout.write(done.stdout if done.returncode == 0 else f"{name} failed\n{done.stdout}{done.stderr}\n")
            for line in map(json.loads, done.stdout.splitlines()):
                failed = failed or not line.get("ok", True)
                out.write(json.dumps(line | facts) + "\n")
            out.flush()
            sys.stdout.flush()
    return int(failed)


def alone(name: str) -> subprocess.CompletedProcess[str]:
    """Run one part in a process of its own."""
    command = [sys.executable, __file__, "--only", name]
    return subprocess.run(command, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
