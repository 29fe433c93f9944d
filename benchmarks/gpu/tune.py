"""Times the shapes in which the matrix kernels may be launched, for the products of a model; prints the best of each.

    python benchmarks/gpu/tune.py llama-3.1-8b
"""

import itertools
import sys
from unittest import mock

import torch
import triton
from decode import spec_of

from tuneserve.kernels.gpu import decode_attention as da
from tuneserve.kernels.gpu import matvec as mv
from tuneserve.kernels.gpu import skinny as sk


def timed(call, weights) -> float:
    """Return milliseconds per call, over weights that together do not fit the cache."""
    graph = torch.cuda.CUDAGraph()
    for weight in weights[:2]:
        call(weight)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for weight in weights:
            call(weight)
    return triton.testing.do_bench(graph.replay, warmup=20, rep=60, return_mode="median") / len(weights)


def attention(spec) -> None:
    """Time decode attention over short and long caches."""
    for count, length in ((1, 160), (8, 160), (32, 160), (256, 160), (1, 8192), (32, 8192)):
        blocks = length // 16
        kv = [
            torch.randn(2, count * blocks, spec.kv_heads, 16, spec.head_dim, device="cuda", dtype=torch.bfloat16)
            for _ in range(max(2, int(2e8 / (count * length * spec.kv_heads * spec.head_dim * 4))))
        ]
        qkv = torch.randn(count, spec.qkv_size, device="cuda", dtype=torch.bfloat16)
        cos = torch.rand(length, spec.head_dim // 2, device="cuda")
        lengths = torch.full((count,), length, dtype=torch.int32, device="cuda")
        tables = torch.randperm(count * blocks, device="cuda").int().view(count, blocks)
        out = torch.empty(count, spec.heads * spec.head_dim, device="cuda", dtype=torch.bfloat16)
        found = []
        for tile, warps, stages in ((32, 1, 2), (32, 2, 2), (64, 2, 2), (64, 2, 3), (64, 4, 2), (64, 4, 3), (128, 4, 2), (128, 8, 2)):
            for programs in (132, 264, 528, 1056) if count * spec.kv_heads < 264 and length > 1000 else (264,):
                splits = max(1, min(64, programs // (count * spec.kv_heads)))
                scratch = da.DecodeScratch.of(count, spec.heads, spec.kv_heads, spec.head_dim, splits, qkv.device)
                with mock.patch.multiple(da, _TILE=tile, _WARPS=warps, _STAGES=stages):
                    ms = timed(lambda c: da.decode_attention(qkv, cos, cos, lengths, tables, *c, scratch, out), kv)
                found.append((ms, f"{(tile, warps, stages, splits)}"))
        found.sort()
        nbytes = kv[0].nbytes
        print(f"attention {count} x {length}: us (GB/s) " + "  ".join(f"{w} {m * 1e3:.1f} ({nbytes / m / 1e6:.0f})" for m, w in found[:6]), flush=True)
        del kv


def main() -> None:
    spec = spec_of(sys.argv[1])
    attention(spec)
    width = spec.heads * spec.head_dim
    products = {
        "qkv": (spec.qkv_size, spec.hidden_size, False, True), "output": (spec.hidden_size, width, False, False),
        "gate_up": (2 * spec.intermediate_size, spec.hidden_size, True, True),
        "down": (spec.hidden_size, spec.intermediate_size, False, False),
        "head": (spec.vocab_size, spec.hidden_size, False, True),
    }  # fmt: skip
    for name, (rows, columns, gated, normed) in products.items():
        nbytes = rows * columns * 2
        copies = max(3, int(3e8 / nbytes) + 1)
        weights = [torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
        results = rows // 2 if gated else rows
        norm = torch.ones(columns, device="cuda", dtype=torch.bfloat16) if normed else None
        for count in (1, 8):
            x = torch.randn(count, columns, device="cuda", dtype=torch.bfloat16)
            out = torch.empty(count, results, device="cuda", dtype=torch.bfloat16)
            whole = torch.empty(count, rows, device="cuda", dtype=torch.bfloat16)
            found = [(timed(lambda w: torch.mm(x, w.T, out=whole), weights), "cuBLAS")]
            if count == 1:
                for shape in ((1, 2048, 8), (2, 2048, 8), (2, 1024, 4), (1, 4096, 8), (2, 4096, 8), (1, 4096, 4), (2, 4096, 16)):
                    if columns % shape[1] or (gated and shape[0] * shape[1] > 4096):
                        continue
                    with mock.patch.object(mv, "shape_of", lambda *_: shape):
                        call = lambda w: mv.matvec(x, w, norm=norm, eps=1e-5, gated=gated, out=out)  # noqa: E731
                        found.append((timed(call, weights), f"matvec {shape}"))
            elif count <= 16:
                for shape in ((64, 128, 4, 4), (64, 256, 4, 4), (64, 128, 4, 6), (32, 256, 4, 6)):
                    if columns % shape[1] or shape[0] * shape[1] * shape[3] * (4 if gated else 2) > 160_000:
                        continue
                    with mock.patch.object(sk, "shape_of", lambda *_: shape):
                        try:
                            found.append((timed(lambda w: sk.skinny(x, w, gated=gated, out=out), weights), f"skinny {shape}"))
                        except triton.runtime.errors.OutOfResources:
                            continue
            found.sort()
            shown = "  ".join(f"{what} {nbytes / ms / 1e6:.0f}" for ms, what in found[:4] + [f for f in found[4:] if f[1] == "cuBLAS"])
            print(f"{name} {count}: GB/s {shown}", flush=True)


if __name__ == "__main__":
    main()
