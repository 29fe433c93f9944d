"""From directories to a decoder, and how many sequences its cache has room for."""

from pathlib import Path
from typing import Literal

import msgspec
import torch

from tuneserve.adapters import WeightedAdapter, merge_model, open_adapter
from tuneserve.errors import InputError
from tuneserve.hardware import available_memory
from tuneserve.model import Decoder, load_weights
from tuneserve.native._cache import bytes_per_token
from tuneserve.sources import ResolvedSource, open_files
from tuneserve.spec import read_spec

DtypeName = Literal["float32", "bfloat16", "float16"]
_DTYPES: dict[DtypeName, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Where the model allows more, more is reserved only when asked for.
_DEFAULT_CONTEXT = 8192
_DEFAULT_RUNNING = 64
# The rest is for activations, and for whatever else runs on the machine.
_CACHE_SHARE = 0.6


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to load and how; ``auto`` and None are decided at load.

    ``dtype`` is auto, float32, bfloat16 or float16. ``context_length`` counts tokens per sequence, ``max_running``
    sequences that share the cache.
    """

    model_dir: str
    weights_file: str | None = None
    adapter_dir: str | None = None
    dtype: str = "auto"
    context_length: int | None = None
    max_running: int | None = None

    @classmethod
    def of(
        cls,
        source: ResolvedSource,
        *,
        dtype: str = "auto",
        context_length: int | None = None,
        max_running: int | None = None,
    ) -> "EngineConfig":
        """Return the configuration that loads ``source``."""
        return cls(
            model_dir=str(source.model_dir),
            weights_file=None if source.weights_file is None else str(source.weights_file),
            adapter_dir=None if source.adapter_dir is None else str(source.adapter_dir),
            dtype=dtype,
            context_length=context_length,
            max_running=max_running,
        )


def load_decoder(config: EngineConfig) -> Decoder:
    """Load the model, its adapter folded in.

    Raises:
        InputError: something in the directories or the configuration cannot be used as it is.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = _dtype(config.dtype, device)
    adapters = [WeightedAdapter(open_adapter(Path(config.adapter_dir)))] if config.adapter_dir else []
    weights_file = None if config.weights_file is None else Path(config.weights_file)
    reader, model_config = open_files(Path(config.model_dir), weights_file)
    model = merge_model(reader, model_config, adapters, dtype)
    spec = read_spec(model.config)
    context = config.context_length or min(spec.short_context_length, _DEFAULT_CONTEXT)
    if not 2 <= context <= spec.context_length:
        raise InputError(
            f"a context of {context} tokens was asked for and the model has {spec.context_length}; "
            f"choose one from 2 to {spec.context_length}."
        )
    weights = load_weights(spec, model, _DTYPES[dtype], device)
    return Decoder(spec, weights, context)


def running_limit(config: EngineConfig, decoder: Decoder) -> int:
    """Return how many sequences of full length share the cache.

    Raises:
        InputError: what was asked for, or even one sequence, does not fit in memory.
    """
    on_gpu = decoder.device.type == "cuda"
    free = torch.cuda.mem_get_info()[0] if on_gpu else available_memory()
    each = bytes_per_token(decoder.spec, decoder.dtype) * decoder.context_length
    fitting = int(free * _CACHE_SHARE) // each
    wanted = config.max_running or min(_DEFAULT_RUNNING, max(1, fitting))
    if wanted < 1:
        raise InputError(f"max_running is {wanted}; it must be at least 1.")
    if wanted > fitting:
        raise InputError(
            f"the cache of {wanted} sequences of {decoder.context_length} tokens takes {wanted * each / 1e9:.1f} GB "
            f"and {free * _CACHE_SHARE / 1e9:.1f} GB can be used; choose a shorter context or fewer sequences."
        )
    return wanted


def _dtype(name: str, device: torch.device) -> DtypeName:
    if name == "auto":
        fast = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return "bfloat16" if fast else "float32"
    for known in _DTYPES:
        if name == known:
            return known
    raise InputError(f"the dtype {name!r} is not known; choose auto, {', '.join(_DTYPES)}.")
