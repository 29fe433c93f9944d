"""By which method a candidate was made, where nobody says so."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneserve.errors import InputError
from tuneserve.sources import read_config

_MANIFEST = "tuneserve.json"
_WHOLE = {"fp8": "fp8", "fbgemm_fp8": "fp8", "mxfp4": "mxfp4", "gptq": "gptq", "awq": "awq"}
_COMPRESSED = {("float", 8): "fp8", ("float", 4): "mxfp4", ("int", 8): "int8", ("int", 4): "int4"}


def method_of(directory: Path, config: Mapping[str, Any]) -> str:
    """Return the method in the manifest, else what the quantisation in ``config`` comes closest to.

    Raises:
        InputError: the quantisation is not known, or a file is malformed.
    """
    if (directory / _MANIFEST).is_file():
        method = read_config(directory / _MANIFEST).get("method")
        if isinstance(method, str):
            return method
    quantisation = config.get("quantization_config")
    if quantisation is None:
        return "merged_16bit"
    found = _quantised(quantisation) if isinstance(quantisation, dict) else None
    if found is None:
        raise InputError(
            f"{directory} is quantised in a way whose error is not known; name the closest method with --method."
        )
    return found


def _quantised(quantisation: Mapping[str, Any]) -> str | None:
    kind = quantisation.get("quant_method")
    if kind == "bitsandbytes":
        return "int8" if quantisation.get("load_in_8bit") else "merged_4bit"
    if kind != "compressed-tensors":
        return _WHOLE.get(str(kind))
    groups = quantisation.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            return _COMPRESSED.get((str(weights.get("type")), weights.get("num_bits", 8)))
    return None
