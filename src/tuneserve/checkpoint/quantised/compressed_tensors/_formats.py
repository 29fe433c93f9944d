"""The number formats of elements and scales.

Specification of E2M1 and E8M0: https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
"""

import math
from itertools import pairwise

import torch

FP8_MAX = 448.0
FP4_MAX = 6.0
_FP4_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _rounding_bounds() -> torch.Tensor:
    """Return the largest float32 that rounds to each code but the last: ties go to the even code."""
    middles = torch.tensor([(a + b) / 2 for a, b in pairwise(_FP4_POSITIVE)])
    odd = torch.arange(len(middles)) % 2 == 1
    return torch.where(odd, torch.nextafter(middles, torch.tensor(0.0)), middles)


_FP4_BOUNDS = _rounding_bounds()
_FP4_VALUES = torch.tensor([*_FP4_POSITIVE, *(-value for value in _FP4_POSITIVE)])


def encode_fp4(values: torch.Tensor) -> torch.Tensor:
    """Round float32 to the nearest E2M1, saturating; returns its codes in uint8."""
    codes = torch.bucketize(values.abs(), _FP4_BOUNDS, out_int32=True).to(torch.uint8)
    return codes | ((values < 0).to(torch.uint8) << 3)


def decode_fp4(codes: torch.Tensor) -> torch.Tensor:
    """Return the float32 values of E2M1 codes."""
    return _FP4_VALUES[codes.to(torch.int32)]


def encode_e8m0(largest: torch.Tensor, element_max: float) -> torch.Tensor:
    """Return the uint8 exponents of the scales that bring ``largest`` (float32, finite) into the elements' range.

    ``largest`` is rounded to a power of two, up from 1.75 times the lower one, as its rounding to E2M1 would.
    """
    exponents = (largest.view(torch.int32) + (1 << 21)) >> 23
    return (exponents - math.floor(math.log2(element_max))).clamp(min=0).to(torch.uint8)


def decode_e8m0(exponents: torch.Tensor) -> torch.Tensor:
    """Return the float32 powers of two of uint8 exponents; the one that stands for no number gives infinity."""
    smallest = torch.tensor(1 << 22, dtype=torch.int32)  # 2**-127 is subnormal
    bits = exponents.to(torch.int32) << 23
    return torch.where(bits == 0, smallest, bits).view(torch.float32)
