"""Numbers from an engine's Prometheus metrics (text format 0.0.4)."""

import re

_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{[^}]*\})? ([0-9.eE+-]+)(?: [0-9]+)?$", re.MULTILINE)


def read_gauges(text: str) -> dict[str, float]:
    """Return the value of each metric, summed over its labels."""
    found: dict[str, float] = {}
    for name, value in _SAMPLE.findall(text):
        try:
            found[name] = found.get(name, 0.0) + float(value)
        except ValueError:
            continue
    return found
