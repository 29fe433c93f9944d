"""By which method a candidate was made, where nobody says so."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneserve.errors import InputError
from tuneserve.parity._files import MANIFEST
from tuneserve.sources import ResolvedSource, read_config

_WHOLE = {"fp8": "fp8", "fbgemm_fp8": "fp8", "mxfp4": "mxfp4", "gptq": "gptq", "awq": "awq"}
# As the field names its files: SmolLM2-135M-Instruct-Q4_K_M.gguf.
_GGUF_NAME = re.compile(r"[-._]((?:I?Q\d|TQ\d|BF16|F16|F32|MXFP4)\w*)\.gguf$", re.IGNORECASE)
_COMPRESSED = {("float", 8): "fp8", ("float", 4): "mxfp4", ("int", 8): "int8", ("int", 4): "int4"}


def method_of(source: ResolvedSource, config: Mapping[str, Any]) -> str:
    """Return the method in the manifest, else what the quantisation in ``config`` or a GGUF file's name comes to.

    Raises:
        InputError: the quantisation is not known, or a file is malformed.
    """
    if source.adapter_dir is not None:
        return "lora"
    gguf = source.source.endswith(".gguf")
    manifest = (Path(source.source).parent if gguf else source.model_dir) / MANIFEST
    method = read_config(manifest).get("method") if manifest.is_file() else None
    if isinstance(method, str):
        return method
    quantisation = config.get("quantization_config")
    if gguf:
        kind = _GGUF_NAME.search(source.source)
        found = f"gguf:{kind[1].lower()}" if kind else None
    elif quantisation is None:
        return "merged_16bit"
    else:
        found = _quantised(quantisation) if isinstance(quantisation, dict) else None
    if found is None:
        raise InputError(
            f"{source.name} is quantised in a way that nothing names; name the closest method with --method."
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
