"""What counts as the same model, for each method of export.

The principle. Storing weights in a format errs by a share ε of their size (root mean square over a weight), and to
first order the divergence of the probabilities is quadratic in it: KL ≈ κ ε². On SmolLM2-135M, which is among the most
sensitive models there are, κ was measured as 65 to 113 for noise of any size and for int8, FP8, NF4, MXFP4, int4 and
GGUF's block formats alike. The limit of the mean is three times 75 ε². p99 and the maximum were 6 and 13 times the
mean, top-1 agreement 1 - 4 ε; their limits leave about as much room.

In the formats of 4 bits and fewer a small model is so far from its reference (0.8 nats) that a missing delta would go
unseen there. That is found in the weights: see ``_audit``. ``weight_error`` is in units of ε, so it is one for all.
"""

import math
from dataclasses import dataclass, replace

from tuneserve.errors import InputError

_KAPPA = 75.0
_ROOM = 3.0
_AGAIN = 5.0
_SIXTEEN_BIT_MEAN = 2e-3
_COMPUTED = 0.01

# Of ε: rounding to bfloat16's 8 bits of significand errs by 2^-8 to 2^-9, uniformly.
_SIXTEEN_BIT = 0.0016
# Measured with ggml's own quantiser on normally distributed weights, and a tenth more for weights that are not.
_GGUF = {
    "f32": _SIXTEEN_BIT, "f16": _SIXTEEN_BIT, "bf16": _SIXTEEN_BIT,
    "q8_0": 0.006, "q6_k": 0.02, "q5_0": 0.047, "q5_1": 0.042, "q5_k": 0.04,
    "q4_0": 0.095, "q4_1": 0.087, "q4_k": 0.08, "iq4_nl": 0.083, "iq4_xs": 0.084, "mxfp4_moe": 0.127,
    "q3_k": 0.165, "iq3_xxs": 0.2, "iq3_xs": 0.2, "iq3_s": 0.152, "iq3_m": 0.152,
    "q2_k": 0.33, "iq2_xxs": 0.38, "iq2_xs": 0.33, "iq2_s": 0.275, "iq2_m": 0.275,
    "iq1_s": 0.53, "iq1_m": 0.5,
}  # fmt: skip
_MERGED = {
    "merged_16bit": (_SIXTEEN_BIT, "the weights are rounded once to 16 bits"),
    "lora": (_SIXTEEN_BIT, "the weights are those that were trained"),
    "merged_4bit": (0.10, "NF4 has 16 levels per block of 64"),
    "merged_4bit_forced": (0.10, "NF4 has 16 levels per block of 64"),
    "fp8": (0.027, "E4M3 has 4 bits of significand"),
    "fp8_dynamic": (0.027, "E4M3 has 4 bits of significand"),
    "fp8_static": (0.027, "E4M3 has 4 bits of significand"),
    "fp8_block": (0.027, "E4M3 has 4 bits of significand"),
    "mxfp8": (0.027, "E4M3 has 4 bits of significand"),
    "int8": (0.012, "8 bits span the largest weight of each row"),
    "w8a8": (0.012, "8 bits span the largest weight of each row"),
    "w8a16": (0.012, "8 bits span the largest weight of each row"),
    "int4": (0.125, "4 bits span the largest weight of each group of 128"),
    "w4a16": (0.125, "4 bits span the largest weight of each group of 128"),
    "awq": (0.125, "4 bits span the largest weight of each group of 128"),
    "gptq": (0.125, "4 bits span the largest weight of each group of 128"),
    "mxfp4": (0.125, "E2M1 has 8 magnitudes per block of 32 with a power of two for a scale"),
    "mxfp4a16": (0.125, "E2M1 has 8 magnitudes per block of 32 with a power of two for a scale"),
    "nvfp4": (0.10, "E2M1 has 8 magnitudes per block of 16"),
    "nvfp4a16": (0.10, "E2M1 has 8 magnitudes per block of 16"),
}
# AWQ rescales columns against the norms before them; GPTQ makes up in later columns for the errors of earlier ones.
_REARRANGED = ("awq", "gptq")
_SUFFIXES = ("_xxs", "_xs", "_s", "_m", "_l", "_xl")


@dataclass(frozen=True)
class Thresholds:
    """The limits of a check. KL is in nats; ``perplexity`` is the largest relative change either way.

    ``weight_error`` is how far a weight may be off, in units of what the format explains: a right export measures
    about 1 whatever the model. ``format_error`` is that unit, the format's relative error ε; None stands for rounding
    to the 16-bit grid, whose error is known for each weight. ``compares_weights`` is false where weights are moved on
    purpose, so that only probabilities tell. ``reason`` says where the limits come from.
    """

    mean_kl: float = _SIXTEEN_BIT_MEAN
    p99_kl: float = 0.05
    max_kl: float = 0.5
    agreement: float = 0.98
    perplexity: float = 0.02
    weight_error: float = 2.0
    format_error: float | None = None
    compares_weights: bool = True
    reason: str = _MERGED["merged_16bit"][1]


def thresholds_for(method: str) -> Thresholds:
    """Return the limits for an export's method; ``gguf:TYPE`` takes llama.cpp's names of types and mixtures.

    Raises:
        InputError: the method has no limits.
    """
    error, reason = _format_error(method)
    if error == _SIXTEEN_BIT:
        # GGUF's f16 and f32 hold weights that were rounded to bfloat16 when they were merged.
        return Thresholds(format_error=error if ":" in method else None, reason=reason)
    mean = max(_SIXTEEN_BIT_MEAN, _ROOM * _KAPPA * error**2)
    return Thresholds(
        mean_kl=mean,
        p99_kl=0.05 + 12 * mean,
        max_kl=0.5 + 30 * mean,
        agreement=max(0.1, 0.98 - 8 * error),
        perplexity=min(1.0, 0.02 + math.expm1(2 * mean)),
        weight_error=2.0,
        format_error=error,
        compares_weights=method not in _REARRANGED,
        reason=reason,
    )


def served(limits: Thresholds) -> Thresholds:
    """Return the limits for a server, which also computes in 16 bits: by about 1% after the layers of a small model."""
    mean = limits.mean_kl + _ROOM * _KAPPA * _COMPUTED**2
    return replace(
        limits,
        mean_kl=mean,
        p99_kl=limits.p99_kl + 12 * mean,
        max_kl=limits.max_kl + 30 * mean,
        agreement=limits.agreement - 8 * _COMPUTED,
        reason=f"{limits.reason}, and the server computes in 16 bits",
    )


def for_requantised(limits: Thresholds) -> Thresholds:
    """Return wider limits, for a base that was quantised to five bits or fewer before.

    Its values lie on steps, and all of those between two steps of the new format are rounded the same way: errors add
    up instead of averaging out. On the demo model, which was once Q4_1, they came to five times what they are on
    weights without steps.
    """
    mean = _AGAIN * limits.mean_kl
    return replace(
        limits,
        mean_kl=mean,
        p99_kl=0.05 + 12 * mean,
        max_kl=0.5 + 30 * mean,
        agreement=max(0.1, limits.agreement - 0.2),
        perplexity=_AGAIN * limits.perplexity,
        reason=f"{limits.reason}; the base was quantised before, which makes errors add up",
    )


def _format_error(method: str) -> tuple[float, str]:
    if method in _MERGED:
        return _MERGED[method]
    family, _, kind = method.lower().partition(":")
    if family in ("gguf", "ollama"):
        # A mixture like q4_k_m keeps some tensors in better types, never in worse than the one it is named after.
        known = [kind, *(kind.removesuffix(suffix) for suffix in _SUFFIXES if kind.endswith(suffix))]
        for name in known:
            if name in _GGUF:
                return _GGUF[name], f"GGUF's {name} errs by about {_GGUF[name]:g} of a weight's size"
    raise InputError(
        f"there are no parity limits for the method {method[:60]!r}; "
        f"name one of {', '.join(_MERGED)} or gguf:TYPE with --method."
    )
