"""Protects: attention over blocks is that of Transformers over whole sequences, in any batch and with every option."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tuneserve.kernels.paged_attention import PagedAttention

BLOCK, HEADS, KV_HEADS, DIM = 4, 6, 2, 8
# Tokens in the cache before the batch, and tokens of the batch; the first three decode.
SEQUENCES = [(0, 1), (9, 1), (15, 1), (0, 7), (0, 1), (6, 5), (8, 1), (4, 8)]
DECODES = 3
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.7},
    "window": {"window": 5},
    "narrow window": {"window": 1},
    "wide window": {"window": 64},
    "softcap": {"softcap": 1.5},
    "softcap in a window": {"softcap": 1.5, "window": 6, "scale": 0.5},
    "sinks": {"sinks": torch.linspace(-1, 2, HEADS)},
    "sinks in a window": {"sinks": torch.linspace(-1, 2, HEADS), "window": 3},
}


def oracle(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Attend from the last rows of one sequence with the eager code of Gemma 2 or, for sinks, gpt-oss."""
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma2
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss

    count, length = len(query), len(key)
    mask = torch.zeros(1, 1, count, length)
    for row in range(count):
        position = length - count + row
        for column in range(length):
            if column > position or column <= position - options.get("window", length):
                mask[..., row, column] = -torch.inf
    module = SimpleNamespace(num_key_value_groups=HEADS // KV_HEADS, training=False, sinks=options.get("sinks"))
    tensors = [tensor.transpose(0, 1)[None] for tensor in (query, key, value)]
    scaling, softcap = options.get("scale", DIM**-0.5), options.get("softcap")
    if module.sinks is not None:
        out, _ = gpt_oss(module, *tensors, mask, scaling=scaling)
    else:
        out, _ = gemma2(module, *tensors, mask, scaling=scaling, softcap=softcap)
    attended: torch.Tensor = out[0].reshape(count, -1)
    return attended


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_sequence_of_a_batch_is_attended_as_if_alone(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    options = OPTIONS[name]
    totals = [past + count for past, count in SEQUENCES]
    needed = [-(-total // BLOCK) for total in totals]
    order = (torch.randperm(sum(needed) + 3, generator=generator) + 1).tolist()
    tables = torch.zeros(len(SEQUENCES), max(needed), dtype=torch.int32)
    for row, count in enumerate(needed):
        tables[row, :count] = torch.tensor([order.pop() for _ in range(count)])
    # Anything finite may be left where nothing was stored, but in block 0.
    keys, values = (torch.randn(sum(needed) + 4, KV_HEADS, BLOCK, DIM, generator=generator).to(dtype) for _ in range(2))
    keys[0] = values[0] = 0
    tokens = [torch.randn(total, 3, HEADS, DIM, generator=generator).to(dtype) for total in totals]
    queries = [each[past:, 0] for each, (past, _) in zip(tokens, SEQUENCES, strict=True)]
    contexts = [(each[:, 1, :KV_HEADS], each[:, 2, :KV_HEADS]) for each in tokens]
    slots = []
    for row, (past, _) in enumerate(SEQUENCES):
        for position in range(totals[row]):
            block, offset = int(tables[row, position // BLOCK]), position % BLOCK
            if position >= past:
                slots.append(block * BLOCK + offset)
            else:
                keys[block, :, offset], values[block, :, offset] = (part[position] for part in contexts[row])
    counts = [count for _, count in SEQUENCES]
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    attention = PagedAttention(
        torch.tensor(slots), starts, torch.tensor(totals, dtype=torch.int32), tables, DECODES, BLOCK
    )
    new = [
        torch.cat([part[index][past:] for part, (past, _) in zip(contexts, SEQUENCES, strict=True)]) for index in (0, 1)
    ]
    # Twice: what the first layer prepared serves the others.
    for _ in range(2):
        out = attention(keys, values, torch.cat(queries), *new, **options)
    expected = [oracle(query, *context, options) for query, context in zip(queries, contexts, strict=True)]
    # One rounding of the output in bfloat16, and of the weights where the oracle rounds them.
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(out, torch.cat(expected).to(dtype), atol=tolerance, rtol=tolerance)


def test_prefill_alone_and_decode_alone() -> None:
    """A batch may have no decoding sequence, or nothing else."""
    keys, values = torch.zeros(2, 4, KV_HEADS, BLOCK, DIM)
    query, key, value = torch.randn(5, HEADS, DIM), torch.randn(5, KV_HEADS, DIM), torch.randn(5, KV_HEADS, DIM)
    table = torch.tensor([[3, 1]], dtype=torch.int32)
    slots = torch.tensor([12, 13, 14, 15, 4])

    def attend(start: int, end: int, decodes: int) -> torch.Tensor:
        bounds, length = torch.tensor([0, end - start]).int(), torch.tensor([end]).int()
        attention = PagedAttention(slots[start:end], bounds, length, table, decodes, BLOCK)
        return attention(keys, values, query[start:end], key[start:end], value[start:end])

    whole = attend(0, 5, 0)
    torch.testing.assert_close(whole, oracle(query, key, value, {}), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attend(4, 5, 1), whole[4:], atol=1e-5, rtol=1e-5)
