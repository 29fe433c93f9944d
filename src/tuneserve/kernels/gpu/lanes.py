"""How the elements of a head lie in a kernel: two lanes for each pair that is rotated, padded to a power of two.

Of a head of ``HALF`` pairs the first ``ROTATED`` are rotated, and they are of its first elements: each with the one
``ROTATED`` places later (arXiv:2104.09864). What comes after them is paired for the lanes only. In which order elements
are multiplied and summed does not matter to attention, so queries and keys are taken as these lanes say.
"""

import torch
import triton
import triton.language as tl

from tuneserve.kernels.gpu.launch import power_of_two

# Matrix units take no fewer.
_LEAST = 16


def lanes_of(head_dim: int) -> int:
    """Return how many lanes there are for the pairs of a head."""
    return max(_LEAST, power_of_two(head_dim // 2))


def pairs_rotated(cos: torch.Tensor | None) -> int:
    """Return how many pairs of a head are rotated by a table (positions, pairs), or without one."""
    return 0 if cos is None else cos.shape[1]


@triton.jit
def paired(lane, HALF: tl.constexpr, ROTATED: tl.constexpr):
    """Return which elements of a head are in the lanes of its pairs, the first and the second ones."""
    if ROTATED == HALF or ROTATED == 0:
        first = lane
        second = lane + HALF
    else:
        first = tl.where(lane < ROTATED, lane, lane + ROTATED)
        second = tl.where(lane < ROTATED, lane + ROTATED, lane + HALF)
    return first, second


@triton.jit
def angles(cos, sin, position, lane, ROTATED: tl.constexpr):
    """Return cosine and sine for each pair, which leave as they are those that are not rotated."""
    if ROTATED == 0:
        c = tl.full(lane.shape, 1.0, tl.float32)
        s = tl.zeros(lane.shape, tl.float32)
    else:
        c = tl.load(cos + position * ROTATED + lane, mask=lane < ROTATED, other=1.0)
        s = tl.load(sin + position * ROTATED + lane, mask=lane < ROTATED, other=0.0)
    return c, s
