"""The two 4-bit codes of bitsandbytes, and how a byte of two becomes two values.

NF4 is :data:`~tuneserve.checkpoint.NF4`. FP4: one sign, two exponent and one mantissa bit, scaled to [-1, 1]. The 8-bit
code for scales: Dettmers et al., https://arxiv.org/abs/1511.04561, section 2.
"""

import torch

from tuneserve.checkpoint._codes import NF4

_FP4_TWELFTHS = (0, 0.0625, 8, 12, 4, 6, 2, 3)
FP4 = tuple(sign * value / 12 for sign in (1.0, -1.0) for value in _FP4_TWELFTHS)
CODES = {"nf4": NF4, "fp4": FP4}


def pairs(code: tuple[float, ...], *, low_first: bool) -> torch.Tensor:
    """Return, for each byte, its two values (fp32) as one int64, so that decoding is a single look-up.

    Returns:
        shape ``[256]``; look up, then ``.view(torch.float32)``.
    """
    values = torch.tensor(code, dtype=torch.float32)
    byte = torch.arange(256)
    low, high = values[byte & 15], values[byte >> 4]
    return torch.stack((low, high) if low_first else (high, low), dim=1).view(torch.int64).flatten()


def dynamic_code() -> torch.Tensor:
    """Return the 256 values (fp32, ascending) that bitsandbytes stores scales as.

    Seven decades, the i-th of them cut into 2^i equal parts whose midpoints are values, with both signs; 0; and 1.
    """
    positive = []
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32)
        positive += (10.0 ** (decade - 6) * (edges[:-1] + edges[1:]) / 2).tolist()
    return torch.tensor(sorted([*(-value for value in positive), 0.0, *positive, 1.0]), dtype=torch.float32)
