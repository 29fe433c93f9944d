"""Protects: weights become the very bytes that ggml's reference quantisers make of them."""

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneserve.artifacts.gguf._blocks import BLOCKS
from tuneserve.artifacts.gguf._encode import encode
from tuneserve.artifacts.gguf._ggml import quantise
from tuneserve.errors import CheckpointError


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(BLOCKS), scale=st.sampled_from([1e-6, 1e-2, 1.0, 300.0]))
def test_blocks_are_the_reference_bytes(seed: int, kind: str, scale: float) -> None:
    rows = scale * torch.randn(6, 96, generator=torch.Generator().manual_seed(seed)).bfloat16()
    rows[0], rows[1, :32], rows[2] = 0, -3 * scale, rows[2].abs()
    ours = encode(kind, rows)
    assert ours.numpy().tobytes() == gguf.quantize(rows.float().numpy(), gguf.GGMLQuantizationType[kind]).tobytes()
    assert torch.equal(ours, quantise(kind, rows.float(), None, threads=2))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_plain_types_are_casts(kind: str) -> None:
    rows = torch.randn(4, 32)
    ours = encode(kind, rows)
    assert (
        ours.view(torch.uint8).numpy().tobytes()
        == gguf.quantize(rows.numpy(), gguf.GGMLQuantizationType[kind]).tobytes()
    )


@pytest.mark.parametrize("kind", [*BLOCKS, "F16", "Q4_K"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_values_that_are_not_finite_are_refused(kind: str, value: float) -> None:
    rows = torch.ones(2, 256)
    rows[1, 7] = value
    with pytest.raises(CheckpointError, match=r"not finite|float16"):
        encode(kind, rows)


def test_what_float16_cannot_hold_is_refused_with_a_remedy() -> None:
    with pytest.raises(CheckpointError, match="bf16"):
        encode("F16", torch.full((1, 32), 70000.0, dtype=torch.bfloat16))


def test_tensors_larger_than_a_chunk_are_encoded_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(50, 64)
    whole = encode("Q8_0", rows)
    monkeypatch.setattr("tuneserve.artifacts.gguf._encode._CHUNK", 64 * 7)
    assert torch.equal(encode("Q8_0", rows), whole)
