"""Quantises to NF4 and its scales to 8 bits, as bitsandbytes 0.50 does on a CPU, to the last bit.

Its GPU kernels look the scales' codes up more finely and so round a few of them differently.
"""

import torch

from tuneserve.checkpoint._codes import NF4
from tuneserve.checkpoint.quantised._codes4 import dynamic_code
from tuneserve.checkpoint.quantised._dequantising import SLAB

# bitsandbytes bounds what it divides by, so that a block of zeros stays one.
_TINY = 1e-38
# How finely its CPU kernel cuts [-1, 1] to look the nearest code up.
_BINS = 65536


def quantise_blocks(values: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise ``values``, shape ``[n]``, in blocks of ``size``.

    Returns:
        the codes, the first of each two in the high bits, ``[ceil(n / 2)]`` U8; the largest magnitude of each block,
        ``[ceil(n / size)]`` fp32.
    """
    bounds = _midpoints(torch.tensor(NF4)).tolist()
    packed = torch.empty((len(values) + 1) // 2, dtype=torch.uint8)
    scales = torch.empty(-(-len(values) // size))
    for start in range(0, len(values), SLAB):
        slab = values[start : start + SLAB].float()
        whole = len(slab) // size * size
        blocks, rest = slab[:whole].view(-1, size), slab[whole:]
        largest = blocks.abs().amax(dim=1)
        scaled = (blocks * largest.clamp(min=_TINY).reciprocal_()[:, None]).flatten()
        if len(rest):
            # A last block that is not full is divided by its scale, where the others are multiplied by its reciprocal.
            last = rest.abs().amax(dim=0, keepdim=True).clamp_(min=_TINY)
            largest = torch.cat((largest, last))
            scaled = torch.cat((scaled, rest / last, torch.zeros(len(rest) % 2)))
        # Fifteen comparisons of all values take a sixth of the time of a binary search for each.
        codes = torch.zeros(scaled.shape, dtype=torch.uint8)
        for bound in bounds:
            codes += (scaled > bound).view(torch.uint8)
        packed[start // 2 : (start + len(codes)) // 2] = codes[::2] << 4 | codes[1::2]
        scales[start // size : start // size + len(largest)] = largest
    return packed, scales


def quantise_scales(scales: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise ``scales``, shape ``[n]`` fp32, in blocks of ``size``.

    Returns:
        indices into :func:`~tuneserve.checkpoint.quantised._codes4.dynamic_code`, ``[n]`` U8; the largest magnitude of
        each block, ``[ceil(n / size)]`` fp32.
    """
    blocks = torch.nn.functional.pad(scales, (0, -len(scales) % size)).view(-1, size)
    largest = blocks.abs().amax(dim=1)
    scaled = (blocks * largest.reciprocal()[:, None]).clamp_(-1, 1).nan_to_num_(-1)
    bins = ((scaled + 1) * 0.5 * (_BINS - 1) + 0.5).int()
    centres = 2 * torch.arange(_BINS, dtype=torch.float32) / (_BINS - 1) - 1
    nearest = torch.bucketize(centres, _midpoints(dynamic_code()))
    codes = torch.where(largest[:, None] == 0, 0, nearest.to(torch.uint8)[bins])
    return codes.flatten()[: len(scales)], largest


def mean(scales: torch.Tensor) -> torch.Tensor:
    """Return the mean of a vector as one thread computes it, so that the bytes do not depend on how many there are."""
    return scales.expand(2, -1).mean(dim=1)[0]


def _midpoints(code: torch.Tensor) -> torch.Tensor:
    return (code[:-1] + code[1:]) / 2
