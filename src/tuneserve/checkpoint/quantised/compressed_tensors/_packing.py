"""Codes of fewer than eight bits in bytes, the first code in the lowest bits."""

import torch


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Pack uint8 codes below 16 ``[rows, columns]`` in pairs into ``[rows, columns / 2]``."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Unpack uint8 or int32 ``[rows, n]`` into the uint8 codes of ``bits`` (1, 2, 4 or 8) bits in them."""
    data = packed.view(torch.uint8)
    if bits == 8:
        return data
    mask = (1 << bits) - 1
    return torch.stack([(data >> shift) & mask for shift in range(0, 8, bits)], dim=-1).flatten(1)
