"""Checks the GPU decoder against float32, and times it: prompts of 32 tokens, 128 new ones, greedy.

Weights are random, in the shape of a real model: speed depends on the shape alone. Appends a line per batch size to
``decode.jsonl``, or to the file that ``--out`` names.

    python benchmarks/gpu/decode.py llama-3.1-8b --batch 1 8 32 128 256
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
import torch.nn.functional as F  # noqa: E402

from tuneserve.kernels.gpu.prefill_attention import query_tiles  # noqa: E402
from tuneserve.model._gpu import GpuDecoder, PrefillBatch  # noqa: E402
from tuneserve.model._weights import LayerWeights, Weights  # noqa: E402
from tuneserve.spec import ModelSpec  # noqa: E402

# hidden, intermediate, layers, heads, kv heads, head dim, vocabulary, tied
SHAPES = {
    "llama-3.1-8b": (4096, 14336, 32, 32, 8, 128, 128256, False),
    "llama-3.2-3b": (3072, 8192, 28, 24, 8, 128, 128256, True),
    "llama-3.2-1b": (2048, 8192, 16, 32, 8, 64, 128256, True),
    "smollm2-135m": (576, 1536, 30, 9, 3, 64, 49152, True),
}
BLOCK = 16


def spec_of(shape: str, layers: int | None = None) -> ModelSpec:
    hidden, inter, depth, heads, kv_heads, head_dim, vocab, tied = SHAPES[shape]
    return ModelSpec(
        family="llama", hidden_size=hidden, intermediate_size=inter, layers=layers or depth, heads=heads,
        kv_heads=kv_heads, head_dim=head_dim, vocab_size=vocab, context_length=131072, norm_eps=1e-5,
        rope_theta=500000.0, rope_scaling=None, tied=tied,
    )  # fmt: skip


def random_weights(spec: ModelSpec) -> Weights:
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * 0.02

    def norm() -> torch.Tensor:
        return 1 + 0.1 * torch.randn(spec.hidden_size, device="cuda", dtype=torch.bfloat16)

    width = spec.heads * spec.head_dim
    layers = tuple(
        LayerWeights(
            attention_norm=norm(), qkv=random(spec.qkv_size, spec.hidden_size), output=random(spec.hidden_size, width),
            mlp_norm=norm(), gate_up=random(2 * spec.intermediate_size, spec.hidden_size),
            down=random(spec.hidden_size, spec.intermediate_size),
        )
        for _ in range(spec.layers)
    )  # fmt: skip
    embedding = random(spec.vocab_size, spec.hidden_size)
    head = embedding if spec.tied else random(spec.vocab_size, spec.hidden_size)
    return Weights(embedding, layers, norm(), head)


class Run:
    """Sequences of equal length, each with its own blocks."""

    def __init__(self, spec: ModelSpec, weights: Weights, sequences: int, length: int) -> None:
        per_sequence = -(-length // BLOCK)
        shape = (spec.layers, sequences * per_sequence, spec.kv_heads, BLOCK, spec.head_dim)
        keys = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
        values = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
        self.decoder = GpuDecoder(spec, weights, length, keys, values, sequences, per_sequence)
        tables = torch.randperm(sequences * per_sequence, device="cuda").view(sequences, -1)
        self.decoder.tables.copy_(tables)
        self.sequences = sequences

    def prefill(self, prompts: torch.Tensor) -> torch.Tensor:
        count, width = prompts.shape
        positions = torch.arange(width, device="cuda").repeat(count)
        owner = torch.arange(count, device="cuda").repeat_interleave(width)
        tables = self.decoder.tables[:count]
        slots = tables[owner, positions // BLOCK].long() * BLOCK + positions % BLOCK
        batch = PrefillBatch(
            ids=prompts.reshape(-1), positions=positions, slots=slots,
            starts=torch.arange(0, (count + 1) * width, width, dtype=torch.int32, device="cuda"),
            lengths=torch.full((count,), width, dtype=torch.int32, device="cuda"), tables=tables,
            tiles=torch.tensor(query_tiles([width] * count), dtype=torch.int32, device="cuda"),
        )  # fmt: skip
        hidden = self.decoder.prefill(batch).view(count, width, -1)[:, -1].contiguous()
        logits = self.decoder.logits(hidden)
        self.decoder.ids[:count] = logits.argmax(-1)
        self.decoder.lengths.zero_()
        self.decoder.lengths[:count] = width + 1
        return logits

    def generate(self, prompts: torch.Tensor, new: int) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        self.prefill(prompts)
        for _ in range(new - 1):
            self.decoder.decode(len(prompts))
        torch.cuda.synchronize()
        return time.perf_counter() - started


def reference(spec: ModelSpec, weights: Weights, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return float32 logits (sequences, length, vocabulary), computed by PyTorch in ``dtype`` without any cache."""
    inv = 1.0 / spec.rope_theta ** (torch.arange(0, spec.head_dim, 2, device="cuda").float() / spec.head_dim)
    angles = torch.arange(ids.shape[1], device="cuda").float()[:, None] * inv
    cos, sin = (torch.cat([part] * 2, -1).to(dtype) for part in (angles.cos(), angles.sin()))

    def turn(x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat((-b, a), -1) * sin

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], weight.to(dtype), spec.norm_eps)

    x = weights.embedding[ids].to(dtype)
    for layer in weights.layers:
        qkv = (norm(x, layer.attention_norm) @ layer.qkv.to(dtype).T).view(*ids.shape, -1, spec.head_dim).transpose(1, 2)
        q, k, v = qkv.split([spec.heads, spec.kv_heads, spec.kv_heads], 1)
        y = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True, enable_gqa=True)
        x = x + y.transpose(1, 2).reshape(*ids.shape, -1) @ layer.output.to(dtype).T
        a, b = (norm(x, layer.mlp_norm) @ layer.gate_up.to(dtype).T).chunk(2, -1)
        x = x + (F.silu(a) * b) @ layer.down.to(dtype).T
    return (norm(x, weights.norm) @ weights.head.to(dtype).T).float()


def check(shape: str) -> None:
    """Raise unless prefill and cached decode agree with float32, at every kind of batch."""
    spec = spec_of(shape, layers=3)
    weights = random_weights(spec)
    for count in (1, 2, 5, 16, 40):
        run = Run(spec, weights, count, 160)
        prompts = torch.randint(0, spec.vocab_size, (count, 100), device="cuda")
        errors, plain, tokens = [], [], prompts
        logits = run.prefill(prompts)
        for _ in range(4):
            expected = reference(spec, weights, tokens, torch.float32)[:, -1]
            errors.append(float((logits - expected).norm() / expected.norm()))
            rounded = reference(spec, weights, tokens, torch.bfloat16)[:, -1]
            plain.append(float((rounded - expected).norm() / expected.norm()))
            tokens = torch.cat((tokens, run.decoder.ids[:count, None]), 1)
            logits = run.decoder.decode(count).clone()
        error, least = statistics.mean(errors), statistics.mean(plain)
        print(f"{shape} batch {count}: relative error {error:.2e}, of PyTorch in bfloat16 {least:.2e}", flush=True)
        assert error < 1.1 * least, "the kernels are less exact than PyTorch's own"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 128, 256])
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--profile", action="store_true", help="print where a step's time goes")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    check(options.shape)
    spec = spec_of(options.shape)
    weights = random_weights(spec)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip() or None
    for batch in options.batch:
        run = Run(spec, weights, batch, options.prompt + options.new)
        prompts = torch.randint(0, spec.vocab_size, (batch, options.prompt), device="cuda")
        run.generate(prompts, 8)
        seconds = statistics.median(run.generate(prompts, options.new) for _ in range(options.runs))
        run.prefill(prompts)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        steps = options.new - 8
        start.record()
        for _ in range(steps):
            run.decoder.decode(batch)
        end.record()
        torch.cuda.synchronize()
        step = start.elapsed_time(end) / steps
        line = {
            "shape": options.shape, "batch": batch, "prompt": options.prompt, "new": options.new,
            "tok_per_s": round(batch * options.new / seconds, 1), "step_ms": round(step, 3),
            "weights_gb_per_s": round((weights.nbytes - (0 if spec.tied else weights.embedding.nbytes)) / step / 1e6),
            "commit": commit, "gpu": torch.cuda.get_device_name(), "torch": torch.__version__,
            "python": platform.python_version(),
        }  # fmt: skip
        print(json.dumps(line), flush=True)
        with options.out.open("a") as out:
            out.write(json.dumps(line) + "\n")
        if options.profile:
            with torch.profiler.profile() as profile:
                run.decoder.decode(batch)
                torch.cuda.synchronize()
            print(profile.key_averages().table(sort_by="cuda_time_total", row_limit=12, max_name_column_width=40))
        del run
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
