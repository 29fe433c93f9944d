"""Each Triton kernel computes what its PyTorch reference does, at sizes that do not fit its tiles."""

from typing import Any

import pytest
import torch

from tuneserve.kernels.gpu.decode_attention import DecodeScratch, decode_attention, decode_attention_reference
from tuneserve.kernels.gpu.gate import gate, gate_reference
from tuneserve.kernels.gpu.greedy import greedy, greedy_reference, greedy_scratch
from tuneserve.kernels.gpu.matvec import matvec, matvec_reference
from tuneserve.kernels.gpu.norm import norm, norm_reference
from tuneserve.kernels.gpu.prefill_attention import (
    prefill_attention,
    prefill_attention_reference,
    query_tiles,
)
from tuneserve.kernels.gpu.rope_store import rope_store, rope_store_reference
from tuneserve.kernels.gpu.skinny import skinny, skinny_reference
from tuneserve.spec import Activation

CLOSE: dict[str, Any] = {"rtol": 2e-3, "atol": 2e-3}
Turn = tuple[torch.Tensor | None, torch.Tensor | None]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("columns", [512, 576, 2560])
@pytest.mark.parametrize(("gated", "residual"), [(False, True), (False, False), (True, False)])
def test_matvec(columns: int, gated: bool, residual: bool) -> None:
    rows = 34
    x, weight = torch.randn(1, columns), torch.randn(rows, columns) / columns**0.5
    results = rows // 2 if gated else rows
    options: dict[str, Any] = {
        "norm": None if residual else torch.rand(columns),
        "eps": 1e-5,
        "bias": torch.randn(rows) if columns == 576 else None,
        "residual": torch.randn(1, results) if residual else None,
        "gated": gated,
        "activation": "gelu_tanh" if columns == 512 else "silu",
    }
    out = torch.full((1, results), torch.nan)
    matvec(x, weight, **options, out=out)
    torch.testing.assert_close(out, matvec_reference(x, weight, **options), **CLOSE)


@pytest.mark.parametrize("count", [2, 16, 21])
@pytest.mark.parametrize(("gated", "residual"), [(False, True), (True, False)])
def test_skinny(count: int, gated: bool, residual: bool) -> None:
    rows, columns = 70, 320
    x, weight = torch.randn(count, columns), torch.randn(rows, columns) / columns**0.5
    results = rows // 2 if gated else rows
    options: dict[str, Any] = {
        "bias": torch.randn(rows) if count > 2 else None,
        "residual": torch.randn(count, results) if residual else None,
        "gated": gated,
        "activation": "gelu_tanh" if count == 16 else "silu",
    }
    out = torch.full((count, results), torch.nan)
    skinny(x, weight, **options, out=out)
    torch.testing.assert_close(out, skinny_reference(x, weight, **options), **CLOSE)


def test_norm() -> None:
    x, weight = torch.randn(3, 576), torch.rand(576)
    out = torch.full_like(x, torch.nan)
    torch.testing.assert_close(norm(x, weight, 1e-5, out), norm_reference(x, weight, 1e-5), **CLOSE)
    hidden = torch.randn(3, 576)
    expected = norm_reference(x, weight, 1e-5, hidden)
    torch.testing.assert_close(norm(x, weight, 1e-5, hidden, residual=hidden), expected, **CLOSE)


def test_greedy() -> None:
    logits = torch.randn(6, 5000)
    logits[1, [4321, 77]] = 9.0
    logits[2] = -torch.rand(5000) - 1
    logits[3, 4999], logits[4], logits[5, 0] = torch.nan, -torch.inf, torch.inf
    expected, counted = torch.zeros(6, dtype=torch.int64), torch.tensor([5, 0, 7, 1, 1, 1], dtype=torch.int32)
    ids, lengths, scratch = expected.clone(), counted.clone(), greedy_scratch(6, logits.device)
    for _ in range(2):  # the second time from the scratch that the first has left
        greedy_reference(logits, expected, counted)
        greedy(logits, ids, lengths, scratch)
        assert torch.equal(ids, expected)
        assert torch.equal(lengths, counted)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gate(activation: Activation) -> None:
    gate_up = torch.randn(3, 2 * 1100) * 4
    # Where the exponential in the hyperbolic tangent is more than float32 holds.
    gate_up[0, :2] = torch.tensor([-40.0, 40.0])
    out = torch.full((3, 1100), torch.nan)
    torch.testing.assert_close(gate(gate_up, out, activation), gate_reference(gate_up, activation), **CLOSE)


class Cache:
    """A paged cache of random content, with sequences whose blocks lie in no order."""

    def __init__(
        self,
        lengths: list[int],
        heads: int,
        kv_heads: int,
        head_dim: int,
        block_size: int = 16,
        pairs: int | None = None,
    ) -> None:
        most = max(lengths) // block_size + 1
        order = torch.randperm(most * len(lengths))
        self.tables = order.view(len(lengths), most).int()
        self.keys = torch.randn(len(order), kv_heads, block_size, head_dim)
        self.values = torch.randn_like(self.keys)
        self.lengths = torch.tensor(lengths, dtype=torch.int32)
        angles = torch.rand(max(lengths) + 1, head_dim // 2 if pairs is None else pairs) * 6
        self.cos, self.sin = angles.cos(), angles.sin()
        self.width = (heads + 2 * kv_heads) * head_dim
        self.heads = heads


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(6, 2, 32), (4, 4, 64)])
@pytest.mark.parametrize("options", [{}, {"window": 70, "scale": 0.3}, {"softcap": 5.0}])
def test_decode_attention(splits: int, heads: int, kv_heads: int, head_dim: int, options: dict[str, Any]) -> None:
    cache = Cache([1, 0, 65, 200], heads, kv_heads, head_dim)
    qkv = torch.randn(4, cache.width)
    if "scale" in options:
        options = {**options, "norms": (torch.rand(head_dim), torch.rand(head_dim)), "eps": 1e-6}
    places = (cache.cos, cache.sin, cache.lengths, cache.tables)
    keys, values = cache.keys.clone(), cache.values.clone()
    expected = decode_attention_reference(qkv, *places, keys, values, **options)
    scratch = DecodeScratch.of(4, heads, kv_heads, head_dim, splits, qkv.device)
    out = torch.zeros(4, heads * head_dim)
    for _ in range(2):  # the second time from the scratch that the first has left
        decode_attention(qkv, *places, cache.keys, cache.values, scratch, out, **options)
        torch.testing.assert_close(out, expected, **CLOSE)
    torch.testing.assert_close(cache.keys, keys, **CLOSE)
    torch.testing.assert_close(cache.values, values, **CLOSE)
    assert not scratch.arrived.any()


@pytest.mark.parametrize(("head_dim", "pairs"), [(80, 40), (24, 5), (32, 0)])
def test_decode_attention_of_other_heads(head_dim: int, pairs: int) -> None:
    cache = Cache([1, 0, 65, 150], 6, 2, head_dim, pairs=pairs)
    qkv, sinks = torch.randn(4, cache.width), torch.randn(6)
    turn: Turn = (cache.cos, cache.sin) if pairs else (None, None)
    options: dict[str, Any] = {
        "norms": (torch.rand(head_dim), torch.rand(head_dim)),
        "eps": 1e-6,
        "query_scales": torch.rand(200) + 0.5,
        "sinks": sinks if pairs < 40 else None,
    }
    places = (cache.lengths, cache.tables)
    keys, values = cache.keys.clone(), cache.values.clone()
    expected = decode_attention_reference(qkv, *turn, *places, keys, values, **options)
    scratch = DecodeScratch.of(4, 6, 2, head_dim, 3, qkv.device)
    out = torch.zeros(4, 6 * head_dim)
    decode_attention(qkv, *turn, *places, cache.keys, cache.values, scratch, out, **options)
    torch.testing.assert_close(out, expected, **CLOSE)
    torch.testing.assert_close(cache.keys, keys, **CLOSE)
    torch.testing.assert_close(cache.values, values, **CLOSE)


@pytest.mark.parametrize(
    ("head_dim", "options"),
    [(32, {}), (32, {"window": 50}), (32, {"softcap": 5.0, "scale": 0.3}), (80, {"sinks": torch.randn(6)})],
)
def test_prefill_attention(head_dim: int, options: dict[str, Any]) -> None:
    counts, lengths = [3, 70, 130], [3, 100, 190]
    cache = Cache(lengths, 6, 2, head_dim)
    qkv = torch.randn(sum(counts), cache.width)
    starts = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32)
    tiles = torch.tensor(query_tiles(counts), dtype=torch.int32)
    out = torch.full((len(qkv), 6 * head_dim), torch.nan)
    given = (qkv, starts, cache.lengths, cache.tables, cache.keys, cache.values)
    prefill_attention(*given, tiles, out, **options)
    torch.testing.assert_close(out, prefill_attention_reference(*given, **options), **CLOSE)


@pytest.mark.parametrize(
    ("head_dim", "pairs", "normed"), [(32, 16, False), (32, 16, True), (40, 20, True), (24, 5, True)]
)
@pytest.mark.parametrize("grows", [False, True])
def test_rope_store(head_dim: int, pairs: int, normed: bool, grows: bool) -> None:
    cache = Cache([40], 6, 2, head_dim, pairs=pairs)
    qkv, positions = torch.randn(3, cache.width), torch.tensor([0, 7, 33])
    slots = cache.tables[0].long()[positions // 16] * 16 + positions % 16
    norms = (torch.rand(head_dim), torch.rand(head_dim)) if normed else None
    scales = torch.rand(41) if grows else None
    turn: Turn = (None, None) if grows and not normed else (cache.cos, cache.sin)
    expected = qkv.clone(), cache.keys.clone(), cache.values.clone()
    rope_store_reference(expected[0], *turn, positions, slots, expected[1], expected[2], norms, 1e-6, scales)
    rope_store(qkv, *turn, positions, slots, cache.keys, cache.values, norms, 1e-6, scales)
    queries = 6 * head_dim
    torch.testing.assert_close(qkv[:, :queries], expected[0][:, :queries], **CLOSE)
    torch.testing.assert_close(cache.keys, expected[1], **CLOSE)
    torch.testing.assert_close(cache.values, expected[2], **CLOSE)
