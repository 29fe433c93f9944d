"""The methods by name: what each makes of a merged model."""

import difflib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tuneserve.adapters import MergedModel
from tuneserve.artifacts._adapter_formats import GgufLoraFormat, LoraFormat
from tuneserve.artifacts._format import Format
from tuneserve.artifacts._linear import linear_weights
from tuneserve.artifacts._safetensors import DEFAULT_SHARD_BYTES, SafetensorsFormat
from tuneserve.artifacts._side_files import side_files
from tuneserve.artifacts.calibrated import CALIBRATED
from tuneserve.artifacts.gguf import PRESETS, GgufFormat, Imatrix, gguf_type
from tuneserve.artifacts.ollama import OllamaFormat
from tuneserve.checkpoint.quantised import CT_ENCODERS, Bnb4bitEncoder, Encoder
from tuneserve.errors import InputError
from tuneserve.sources import ResolvedSource

GGUF, OLLAMA = "gguf:", "ollama:"
# Needs no optional package, and loses next to nothing.
_OLLAMA_DEFAULT = "q8_0"
# The same thing under the names that Unsloth has for it.
_ALIASES = {
    "merged_4bit_forced": "merged_4bit",
    "gguf_lora": "gguf-lora",
    "ollama": OLLAMA + _OLLAMA_DEFAULT,
    "fp8_dynamic": "fp8", "dynamic_fp8": "fp8", "w8a8_fp8": "fp8",
    "block_fp8": "fp8_block",
    "static_fp8": "fp8_static",
    "w4a4_nvfp4": "nvfp4",
    "w8a8": "int8", "w8a8_int8": "int8",
    "int8_weight": "w8a16",
    "w4a16": "int4", "int4_weight": "int4",
    "w8a8_mxfp8": "mxfp8",
    "w4a4_mxfp4": "mxfp4",
    "w4a16_mxfp4": "mxfp4a16",
    "w4a16_nvfp4": "nvfp4a16",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """What shapes the outputs of some methods: ``max_shard_bytes`` safetensors files, ``imatrix`` GGUF types."""

    max_shard_bytes: int = DEFAULT_SHARD_BYTES
    imatrix: Imatrix | None = None


def _bitsandbytes(model: MergedModel) -> Encoder:
    linear = linear_weights(model.tensors, model.config)
    return Bnb4bitEncoder([*linear.modules, *linear.transposed], transposed=linear.transposed)


def _compressed_tensors(method: str) -> Callable[[MergedModel], Encoder]:
    def make(model: MergedModel) -> Encoder:
        linear = linear_weights(model.tensors, model.config)
        specs = [model.tensors[name] for name in (*linear.modules, *linear.experts)]
        return CT_ENCODERS[method](specs, linear.others)

    return make


_ENCODERS: Mapping[str, Callable[[MergedModel], Encoder]] = {
    "merged_4bit": _bitsandbytes,
    **{name: _compressed_tensors(name) for name in CT_ENCODERS},
}
ADAPTER_METHODS = ("lora", "gguf-lora")
METHODS = (
    "merged_16bit",
    *_ENCODERS,
    *CALIBRATED,
    *(GGUF + preset for preset in PRESETS),
    *(OLLAMA + preset for preset in PRESETS),
    *ADAPTER_METHODS,
)


def canonical(method: str) -> str:
    """Return the one name under which a method is known here.

    Raises:
        InputError: there is no such method.
    """
    name = method.lower().strip().replace("-", "_")
    for kind in (GGUF, OLLAMA):
        if name.startswith(kind):
            return kind + gguf_type(name.removeprefix(kind))
    name = _ALIASES.get(name, name)
    if name in METHODS:
        return name
    with suppress(InputError):
        return GGUF + gguf_type(name)
    near = difflib.get_close_matches(name, (*METHODS, *_ALIASES), n=3, cutoff=0.5) or ("merged_16bit", "gguf:q4_k_m")
    raise InputError(f"the method {method[:60]!r} is not known; choose one like {', '.join(near)}.")


def make_format(
    method: str, source: ResolvedSource, config: Mapping[str, Any], model: MergedModel, options: MethodOptions
) -> Format:
    """Plan what ``method``, by its canonical name, makes of ``model``, whose base has the ``config``.

    Raises:
        InputError: it cannot be made of this model.
    """
    kind, _, preset = method.partition(":")
    if preset:
        return (OllamaFormat if kind == "ollama" else GgufFormat)(
            model.tensors,
            model.config,
            source.tokenizer_dir,
            source.name,
            preset,
            imatrix=options.imatrix,
            model_dir=source.model_dir,
        )
    if method == "lora":
        return LoraFormat(source)
    if method == "gguf-lora":
        return GgufLoraFormat(source, config)
    encoder = _ENCODERS[method](model) if method in _ENCODERS else None
    return SafetensorsFormat(model.tensors, model.config, side_files(source), encoder, options.max_shard_bytes)
