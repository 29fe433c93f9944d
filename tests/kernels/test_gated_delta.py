"""Protects: the gated delta rule, token by token and in chunks, and the convolution before it, are Transformers'."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    causal_conv1d_fn,
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)

from tuneserve.kernels.causal_conv import causal_conv
from tuneserve.kernels.gated_delta import gated_delta

SEQUENCES, KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM = 2, 2, 6, 8, 12
close = partial(torch.testing.assert_close, atol=2e-5, rtol=1e-4)


Given = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def inputs(tokens: int, dtype: torch.dtype = torch.float32) -> Given:
    torch.manual_seed(tokens)
    query, key = (torch.randn(SEQUENCES, tokens, KEY_HEADS, KEY_DIM, dtype=dtype) for _ in range(2))
    value = torch.randn(SEQUENCES, tokens, VALUE_HEADS, VALUE_DIM, dtype=dtype)
    decay = -(torch.rand(SEQUENCES, tokens, VALUE_HEADS) ** 4)
    rate = torch.rand(SEQUENCES, tokens, VALUE_HEADS, dtype=dtype)
    return query, key, value, decay, rate, torch.randn(SEQUENCES, VALUE_HEADS, KEY_DIM, VALUE_DIM)


def ours(given: Given) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output and the state after it."""
    state = given[-1].clone()
    return gated_delta(*given[:-1], state), state


def theirs(function: Callable[..., tuple[torch.Tensor, torch.Tensor]], given: Given) -> tuple[torch.Tensor, ...]:
    query, key, value, decay, rate, state = given
    options = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}
    return function(query, key, value, g=decay, beta=rate, initial_state=state, **options)


# Less than a chunk, exactly one, and several with something left.
@pytest.mark.parametrize("tokens", [1, 5, 64, 150])
@pytest.mark.parametrize("function", [torch_recurrent_gated_delta_rule, torch_chunk_gated_delta_rule])
def test_it_is_that_of_transformers(tokens: int, function: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> None:
    given = inputs(tokens)
    for found, expected in zip(ours(given), theirs(function, given), strict=True):
        close(found, expected)


def test_in_16_bits_it_is_computed_in_float32() -> None:
    given = inputs(70, torch.bfloat16)
    query, key, value, decay, rate, state = (tensor.float() for tensor in given)
    for found, expected in zip(ours(given), ours((query, key, value, decay, rate, state)), strict=True):
        assert found.dtype == torch.float32
        close(found, expected)


def test_tokens_may_come_in_parts() -> None:
    given = inputs(150)
    whole, last = ours(given)
    state, outs, begin = given[-1], [], 0
    for count in (1, 70, 3, 1, 75):
        query, key, value, decay, rate = (tensor[:, begin : begin + count] for tensor in given[:-1])
        outs.append(gated_delta(query, key, value, decay, rate, state))
        begin += count
    close(torch.cat(outs, dim=1), whole)
    close(state, last)


def test_heads_that_forget_at_once_stay_finite() -> None:
    query, key, value, decay, rate, state = inputs(130)
    for found in ours((query, key, value, torch.full_like(decay, -80.0), rate, state)):
        assert found.isfinite().all()


@pytest.mark.parametrize("kernel", [1, 2, 4])
def test_the_convolution_goes_on_where_it_was(kernel: int) -> None:
    torch.manual_seed(kernel)
    x, weight = torch.randn(SEQUENCES, 11, 5), torch.randn(5, kernel)
    expected = causal_conv1d_fn(x.transpose(1, 2), weight).transpose(1, 2)
    past, outs, begin = torch.zeros(SEQUENCES, kernel - 1, 5), [], 0
    for count in (1, 2, 7, 1):
        outs.append(causal_conv(x[:, begin : begin + count], past, weight))
        begin += count
    torch.testing.assert_close(torch.cat(outs, dim=1), expected)
