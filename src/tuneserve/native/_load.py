"""From directories to a decoder."""

import contextlib
import ctypes
import logging
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch

from tuneserve.adapters import MergedModel, WeightedAdapter, merge_model, open_adapter
from tuneserve.checkpoint import WeightReader
from tuneserve.errors import InputError
from tuneserve.model import Decoder, Weights, join, load_shard, load_weights
from tuneserve.native._cpu_step import prepare_step
from tuneserve.native._decoders import AnyDecoder, LoadedDecoder
from tuneserve.native._gpu_step import prepare_gpu_step
from tuneserve.native._transformers import TransformersDecoder, context_limit
from tuneserve.sources import ResolvedSource, open_files
from tuneserve.spec import ModelSpec, Share, computation_of, reasons_against_split

DtypeName = Literal["float32", "bfloat16", "float16"]
_DTYPES: dict[DtypeName, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Where the model allows more, more is reserved only when asked for.
_DEFAULT_CONTEXT = 8192
_DEFAULT_RUNNING = 64
_DEFAULT_GPU_RUNNING = 256
MOST_SPECULATION = 15
# Where a model does not say.
_MOST_CONTEXT = 1 << 20
_logger = logging.getLogger("tuneserve.native")


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to load and how; ``auto`` and None are decided at load.

    ``tokenizer_dir`` is only needed for grammars.
    ``dtype`` is auto, float32, bfloat16 or float16. ``context_length`` counts tokens per sequence, ``max_running``
    sequences computed together, ``cache_tokens`` tokens that the cache holds. ``prefix_cache`` says whether a prompt
    uses what was computed for an equal beginning of another one; with a model that has a state beside the cache none
    does. ``speculation`` is how many tokens are guessed at most from what a sequence repeats, to be computed in one
    step with the last; it changes how fast tokens come, not which.

    ``cpu_step`` is ``compiled`` (C++ built on this machine), ``eager`` (PyTorch) or auto, which is the first where it
    can be. ``weights`` is auto, ``dequantised``, ``int8`` or ``int4``. ``auto`` keeps what is stored in few bits so,
    where there is a kernel for it and no adapter changes it, and ``dequantised`` does not; the last two are quantised
    at load in groups of 32 (with int4 the head is int8). The compiled step then has activations in 8 bits.

    ``tensor_parallel`` is how many GPUs of this machine (on the CPU: processes) divide each layer among them. All but
    the first are child processes; when one of them ends, the process of the engine ends too.
    """

    model_dir: str
    weights_file: str | None = None
    adapter_dir: str | None = None
    tokenizer_dir: str | None = None
    dtype: str = "auto"
    context_length: int | None = None
    max_running: int | None = None
    cache_tokens: int | None = None
    prefix_cache: bool = True
    speculation: int = 0
    cpu_step: str = "auto"
    weights: str = "auto"
    tensor_parallel: int = 1

    @classmethod
    def of(
        cls,
        source: ResolvedSource,
        *,
        dtype: str = "auto",
        context_length: int | None = None,
        max_running: int | None = None,
        cache_tokens: int | None = None,
        prefix_cache: bool = True,
        speculation: int = 0,
        cpu_step: str = "auto",
        weights: str = "auto",
    ) -> "EngineConfig":
        """Return the configuration that loads ``source``."""
        return cls(
            model_dir=str(source.model_dir),
            weights_file=None if source.weights_file is None else str(source.weights_file),
            adapter_dir=None if source.adapter_dir is None else str(source.adapter_dir),
            tokenizer_dir=str(source.tokenizer_dir),
            dtype=dtype,
            context_length=context_length,
            max_running=max_running,
            cache_tokens=cache_tokens,
            prefix_cache=prefix_cache,
            speculation=speculation,
            cpu_step=cpu_step,
            weights=weights,
        )

    def open_weights(self) -> tuple[WeightReader, dict[str, Any]]:
        """Open the weights, without the adapter, as :func:`tuneserve.sources.open_files` does."""
        return open_files(Path(self.model_dir), None if self.weights_file is None else Path(self.weights_file))


def load_decoder(config: EngineConfig, share: Share | None = None) -> LoadedDecoder:
    """Load the model, its adapter folded in; what the native decoder does not compute runs through Transformers.

    With ``share``, load that part of it, onto the GPU of its number where there are GPUs; it needs the others to run.

    Raises:
        InputError: something in the directories or the configuration cannot be used as it is.
        EngineError: the compiled step was asked for and cannot be had.
    """
    device = _device(share)
    dtype = _dtype(config.dtype, device)
    adapters = [WeightedAdapter(open_adapter(Path(config.adapter_dir)))] if config.adapter_dir else []
    reader, model_config = config.open_weights()
    model = merge_model(reader, model_config, adapters, dtype)
    computation = computation_of(model.config)
    if (spec := computation.spec) is None:
        if share is not None:
            raise InputError(
                f"the model runs through Transformers on one device ({computation.reason}); leave tensor_parallel at 1."
            )
        return _through_transformers(config, model, _DTYPES[dtype], device, computation.reason)
    if spec.has_state and config.speculation:
        raise InputError(
            f"speculation cannot be had with {spec.family}, whose state cannot be taken back to before a wrong guess; "
            "set it to 0."
        )
    context = _context(config, spec.short_context_length, spec.context_length)
    if share is not None:
        return _load_share(config, spec, model, _DTYPES[dtype], device, context, share)
    weights = load_weights(spec, model, _DTYPES[dtype], device, deferred=True)
    return _prepare(config, spec, weights, context)


def _prepare(config: EngineConfig, spec: ModelSpec, weights: Weights, context: int) -> AnyDecoder:
    device = weights.embedding.device
    if device.type == "cuda" and config.cpu_step == "auto":
        running = config.max_running or default_running(device)
        return prepare_gpu_step(spec, weights, context, running, config.weights)
    return prepare_step(spec, weights, context, config.cpu_step, config.weights)


def _load_share(
    config: EngineConfig,
    spec: ModelSpec,
    model: MergedModel,
    dtype: torch.dtype,
    device: torch.device,
    context: int,
    share: Share,
) -> AnyDecoder:
    if reasons := reasons_against_split(spec, share.size):
        raise InputError(f"tensor_parallel cannot be {share.size} ({'; '.join(reasons)}); choose another number.")
    own, weights = load_shard(spec, model, dtype, device, share)
    if device.type == "cpu":
        # The compiled step has no place for sums over processes.
        config = msgspec.structs.replace(config, cpu_step="eager")
    decoder = _prepare(config, own, weights, context)
    if isinstance(decoder, Decoder):
        return join(decoder)
    from tuneserve.model._gpu import GpuDecoder
    from tuneserve.model._gpu_parallel import join_gpu

    assert isinstance(decoder, GpuDecoder)
    return join_gpu(decoder, share.size)


def _device(share: Share | None) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if share is None:
        return torch.device("cuda")
    device = torch.device("cuda", share.rank)
    torch.cuda.set_device(device)
    return device


def _through_transformers(
    config: EngineConfig, model: MergedModel, dtype: torch.dtype, device: torch.device, reason: str | None
) -> TransformersDecoder:
    from tuneserve.native._transformers_load import load_transformers_model

    asked = {"speculation": config.speculation != 0, "weights": config.weights != "auto"}
    asked["cpu_step"] = config.cpu_step == "compiled"
    if names := [name for name, given in asked.items() if given]:
        raise InputError(
            f"{', '.join(names)} cannot be had with what runs through Transformers; leave it at its default."
        )
    loaded = load_transformers_model(model, model.config, dtype, device)
    limit = context_limit(loaded.config)
    _logger.warning("the model runs through Transformers, which is slower: %s", reason)
    return TransformersDecoder(loaded, _context(config, limit or _DEFAULT_CONTEXT, limit or _MOST_CONTEXT))


def _context(config: EngineConfig, usual: int, most: int) -> int:
    context = config.context_length or min(usual, _DEFAULT_CONTEXT)
    if not 2 <= context <= most:
        raise InputError(
            f"a context of {context} tokens was asked for and the model has {most}; choose one from 2 to {most}."
        )
    return context


def give_memory_back() -> None:
    """Give what was freed back to the system: beside the packed weights, the C library keeps the room of the others."""
    with contextlib.suppress(AttributeError):  # only GNU's has it
        ctypes.CDLL(None).malloc_trim(0)


def reuses_prefixes(config: EngineConfig, spec: ModelSpec) -> bool:
    """Say whether a prompt uses what was computed for an equal beginning of another one."""
    if config.prefix_cache and spec.has_state:
        _logger.info("prefixes are not reused: a sequence of %s carries a state, which blocks do not hold", spec.family)
    return config.prefix_cache and not spec.has_state


def default_running(device: torch.device) -> int:
    """Return how many sequences are computed together unless something else is asked for."""
    return _DEFAULT_GPU_RUNNING if device.type == "cuda" else _DEFAULT_RUNNING


def _dtype(name: str, device: torch.device) -> DtypeName:
    if name == "auto":
        fast = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return "bfloat16" if fast else "float32"
    for known in _DTYPES:
        if name == known:
            return known
    raise InputError(f"the dtype {name!r} is not known; choose auto, {', '.join(_DTYPES)}.")
