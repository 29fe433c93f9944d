"""Whether a library that builds the model of a configuration comes to an end."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tuneserve.errors import SpecError

# The largest models have some 130 layers, and 25,000 experts in all.
_MAX_LAYERS = 4096
_MAX_EXPERTS = 1 << 16
_LAYERS = re.compile(r"(.*_)?layers?|depth|(num|n)_blocks")
_EXPERTS = re.compile(r"(?!.*per_tok).*experts")


def check_buildable(config: Mapping[str, Any]) -> None:
    """Check that a library builds the modules of a ``config.json``, of whatever family, in bounded time and memory.

    Raises:
        SpecError: it has more layers or experts than any model.
    """
    layers = max(_counts(config, _LAYERS), default=1)
    experts = max(_counts(config, _EXPERTS), default=1)
    if layers > _MAX_LAYERS or max(1, layers) * experts > _MAX_EXPERTS:
        raise SpecError(
            f"config.json has {layers:.4g} layers and {experts:.4g} experts in each, more than any model; download or "
            "save the model again."
        )


def _counts(config: Mapping[str, Any], names: "re.Pattern[str]") -> Iterator[int]:
    """Yield the numbers under such names, also those of the parts of a multimodal model."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _counts(value, names)
        elif isinstance(value, int | float) and names.fullmatch(name) and value == value:
            yield int(min(value, 1e18))
