"""What vLLM cannot load, told from configurations and headers (vllm/lora/peft_helper.py, layers/quantization)."""

from collections.abc import Mapping, Sequence
from typing import Any

from tuneserve.adapters import LoraAdapter, open_adapter
from tuneserve.engines._checks import lora_problems, quantisation, version_numbers
from tuneserve.engines._vllm_command import RANKS, text_config
from tuneserve.engines.environments import Environment
from tuneserve.engines.kind import NamedAdapter, ServeOptions
from tuneserve.errors import AdapterError
from tuneserve.sources import ResolvedSource

# By quantization_config's quant_method; those of the CPU by https://docs.vllm.ai, "CPU", without what needs AMX.
_LOADED = (
    "auto-round",
    "awq",
    "compressed-tensors",
    "fbgemm_fp8",
    "fp8",
    "gptq",
    "modelopt",
    "mxfp4",
    "quark",
    "torchao",
)
_LOADED_ON_CPU = ("awq", "compressed-tensors", "gptq")
_CPU_FORMATS = ("int-quantized", "pack-quantized", "naive-quantized", "dense")
_BITSANDBYTES, _GGUF = "bitsandbytes", "GGUF"
_BNB_PLUGIN, _BNB_LEFT = "vllm-bnb-plugin", (0, 28)
_GGUF_PLUGIN = "vllm-gguf-plugin"
# The first version that was seen to honour them.
_PATTERNS_FROM = (0, 32)
_LACKING = {
    "use_dora": "DoRA",
    "lora_bias": "lora_bias",
    "bias": "trained biases",
    "modules_to_save": "modules_to_save",
    "trained_tokens": "trained tokens",
    "target_parameters": "target_parameters",
    "fan_in_fan_out": "fan_in_fan_out",
    "residual": "PiSSA or OLoRA base",
}
_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out")


def quantised_by(source: ResolvedSource) -> str:
    """Return how the weights are quantised, empty where they are not."""
    if source.weights_file is not None:
        return _GGUF
    found = quantisation(source)
    return str(found.get("quant_method"))[:40] if found else ""


def weight_problems(
    source: ResolvedSource, environment: Environment, options: ServeOptions, *, on_cpu: bool
) -> list[str]:
    """Return why it cannot load the weights, each of which exporting them in 16 bits solves."""
    method = quantised_by(source)
    if not method:
        return []
    problems = []
    if on_cpu:
        found = quantisation(source) or {}
        kind = str(found.get("format"))[:40]
        if method not in _LOADED_ON_CPU:
            problems.append(f"on the CPU it does not load {method} weights")
        elif method == "compressed-tensors" and kind not in _CPU_FORMATS:
            problems.append(f"on the CPU it does not load compressed-tensors weights in the format {kind}")
    elif method == _GGUF:
        if _GGUF_PLUGIN not in environment.versions:
            problems.append(f"it loads GGUF files only with {_GGUF_PLUGIN}, which {environment.python} does not have")
    elif method == _BITSANDBYTES:
        if version_numbers(environment.version) >= _BNB_LEFT and _BNB_PLUGIN not in environment.versions:
            problems.append(
                f"it loads bitsandbytes weights only with {_BNB_PLUGIN}, which {environment.python} does not have"
            )
    elif method not in _LOADED:
        problems.append(f"it does not load weights quantised by {method}")
    if options.tensor_parallel > 1 and method in (_BITSANDBYTES, _GGUF):
        problems.append(f"it does not divide {method} weights among GPUs")
    return problems


def option_problems(config: Mapping[str, Any], options: ServeOptions, *, on_cpu: bool) -> list[str]:
    """Return why it cannot keep to the options with any weights of this model."""
    text, problems = text_config(config), []
    heads, longest = text.get("num_attention_heads"), text.get("max_position_embeddings")
    if options.tensor_parallel > 1:
        if on_cpu:
            problems.append("on the CPU it runs in one process, without tensor parallelism")
        elif type(heads) is int and heads % options.tensor_parallel:
            problems.append(f"{options.tensor_parallel} GPUs do not divide its {heads} attention heads")
    rope = text.get("rope_parameters")
    stretched = text.get("rope_scaling") or (isinstance(rope, dict) and "factor" in rope)
    if type(longest) is int and not stretched and (options.context_length or 0) > longest:
        problems.append(f"a context of {options.context_length} tokens is beyond the model's {longest}")
    return problems


def adapter_problems(adapters: Sequence[NamedAdapter]) -> list[str]:
    """Return why it cannot serve adapters unmerged."""
    return [problem for adapter in adapters for problem in (lora_problems(adapter, _LACKING) or _of_modules(adapter))]


def unread_adapters(adapters: Sequence[NamedAdapter], environment: Environment) -> list[str]:
    """Return what it does not read of adapters that have no other problem, and would once they are exported."""
    problems = []
    for adapter in adapters:
        opened = _opened(adapter)
        has_patterns = opened.config.rank_pattern or opened.config.alpha_pattern
        if has_patterns and version_numbers(environment.version) < _PATTERNS_FROM:
            problems.append(f"it has one rank and alpha for the whole of the adapter {adapter.name}")
        if not all(
            name.startswith("base_model.model.") and name.endswith((".lora_A.weight", ".lora_B.weight"))
            for name in opened.checkpoint.tensors
        ):
            problems.append(f"the adapter {adapter.name} has tensors under names that it does not read")
    return problems


def largest_rank(adapters: Sequence[NamedAdapter]) -> int:
    """Return the largest rank of all modules of all adapters, 0 without any."""
    return max((rank for adapter in adapters for rank in _opened(adapter).ranks), default=0)


def _of_modules(adapter: NamedAdapter) -> list[str]:
    try:
        opened = _opened(adapter)
        ranks = opened.ranks
    except AdapterError as error:
        return [f"the adapter {adapter.name} cannot be read ({str(error).rstrip('.')})"]
    problems = []
    if ranks and ranks[-1] > RANKS[-1]:
        problems.append(f"the adapter {adapter.name} has rank {ranks[-1]}, over {RANKS[-1]}")
    embeddings = sorted({last for module in opened.modules if (last := module.rpartition(".")[2]) in _EMBEDDINGS})
    if embeddings:
        problems.append(
            f"the adapter {adapter.name} changes {', '.join(embeddings)}, which it does not do for all models"
        )
    return problems


def _opened(adapter: NamedAdapter) -> LoraAdapter:
    opened = open_adapter(adapter.directory)
    assert isinstance(opened, LoraAdapter), "the check refuses others"
    return opened
