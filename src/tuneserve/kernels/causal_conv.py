"""A causal convolution of each channel on its own, over sequences that come in parts."""

import torch


def causal_conv(x: torch.Tensor, past: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return what each input and those before it give.

    Args:
        x: (sequences, tokens, channels).
        past: the inputs before these, (sequences, kernel - 1, channels), zeros where there were none; it becomes
            that of what follows.
        weight: float32 (channels, kernel), the last column for the input itself.

    Returns:
        (sequences, tokens, channels), summed in float32 and rounded to the dtype of ``x``.
    """
    tokens, kernel = x.shape[1], weight.shape[1]
    seen = torch.cat((past, x), dim=1)
    taps = seen.float()
    out = taps[:, :tokens] * weight[:, 0]
    for tap in range(1, kernel):
        out.addcmul_(taps[:, tap : tap + tokens], weight[:, tap])
    past.copy_(seen[:, tokens:])
    return out.to(x.dtype)
