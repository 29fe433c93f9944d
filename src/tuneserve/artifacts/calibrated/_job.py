"""The calibration itself: ``PYTHON -I _job.py REQUEST``, run by an interpreter that has ``llmcompressor``.

It imports nothing of tuneserve, because that is not installed there. REQUEST is a JSON file with ``method``, ``model``
(a 16-bit directory), ``weights`` (the names in it), ``samples`` (lists of token ids), ``out`` (a directory to fill with
weights and ``config.json``), ``max_shard_bytes`` and ``facts`` (a file to write what was done to). Standard input is a
pipe, open for as long as whoever started it lives.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

# vLLM has kernels for these; the first that divides every layer's inputs is taken.
_GROUP_SIZES = (128, 64, 32)
# Routers and gates of mixtures of experts decide, and are tiny.
_IGNORED = (r"re:.*\.gate$", r"re:.*\.router$", r"re:.*\.shared_expert_gate$")


def main() -> None:
    """Do what the request on the command line says."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request = json.loads(Path(sys.argv[1]).read_bytes())

    import torch
    from llmcompressor import oneshot
    from llmcompressor.modeling.moe.linearize import linearize_moe
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    if not torch.accelerator.is_available():
        _never_pin()
    _say("loading the merged model")
    model = AutoModelForCausalLM.from_pretrained(
        request["model"], dtype="auto", local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    model.eval()
    # Transformers holds experts as one parameter; checkpoints, and what quantises, as linear layers.
    linearize_moe(model)
    linear = _linear_modules(model)
    _require_named_experts(linear, set(request["weights"]))
    recipe, facts = _recipe(request["method"], linear, _ignored(model))
    norms = {name: value.detach().clone() for name, value in model.named_parameters() if value.ndim == 1}
    _say(f"calibrating {len(linear)} linear layers on {len(request['samples'])} samples")
    oneshot(model=model, recipe=recipe, dataset=_batches(request["samples"]), processor=_no_tokenizer())
    if request["method"] != "awq":
        _restore(model, norms)
    _say("writing the quantised model")
    model.save_pretrained(request["out"], save_compressed=True, max_shard_size=request["max_shard_bytes"])
    Path(request["facts"]).write_text(json.dumps({"quantised_modules": len(linear), **facts}))


def _recipe(method: str, linear: dict[str, Any], ignored: list[str]) -> tuple[list[Any], dict[str, Any]]:
    from compressed_tensors.quantization import preset_name_to_scheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    preset = {"awq": "W4A16_ASYM", "gptq": "W4A16", "fp8_static": "FP8", "nvfp4": "NVFP4"}[method]
    scheme = preset_name_to_scheme(preset, ["Linear"])
    if method in ("awq", "gptq"):
        scheme.weights.group_size = _group_size(linear)
    settings: dict[str, Any] = {"config_groups": {"group_0": scheme}, "ignore": ignored}
    facts = {"scheme": preset, "group_size": scheme.weights.group_size}
    if method == "gptq":
        return [GPTQModifier(**settings)], facts
    if method == "awq":
        return [AWQModifier(), QuantizationModifier(**settings)], facts
    return [QuantizationModifier(**settings)], facts


def _group_size(linear: dict[str, Any]) -> int:
    inputs = {module.in_features for module in linear.values()}
    for size in _GROUP_SIZES:
        if all(count % size == 0 for count in inputs):
            return size
    raise SystemExit(f"no group size of {_GROUP_SIZES} divides the inputs {sorted(inputs)} of its linear layers")


def _require_named_experts(linear: dict[str, Any], weights: set[str]) -> None:
    """Refuse experts that would be written otherwise than the checkpoint has them, before hours are spent."""
    odd = [name for name in linear if ".experts." in name and f"{name}.weight" not in weights]
    if odd:
        raise SystemExit(f"it has no way to write this family's experts as they were ({odd[0]})")


def _linear_modules(model: Any) -> dict[str, Any]:
    import torch
    from compressed_tensors.utils import match_named_modules

    found = dict(match_named_modules(model, ["Linear"], _ignored(model)))
    return {name: module for name, module in found.items() if isinstance(module, torch.nn.Linear)}


def _ignored(model: Any) -> list[str]:
    head = model.get_output_embeddings()
    return [*_IGNORED, *(name for name, module in model.named_modules() if module is head)]


def _batches(samples: list[list[int]]) -> Any:
    import torch

    def batch(items: list[list[int]]) -> dict[str, Any]:
        ids = torch.tensor(items)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    # One sample a batch, so that none is padded or cut; always in the same order.
    return torch.utils.data.DataLoader(samples, batch_size=1, collate_fn=batch)  # type: ignore[arg-type]


def _no_tokenizer() -> Any:
    """Return what keeps ``oneshot`` from loading the model's own: the samples are tokens already."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()))


def _never_pin() -> None:
    """Keep AWQ from pinning memory for the transfers to a GPU, which PyTorch refuses where there is none."""
    from llmcompressor.pipelines.cache import IntermediatesCache

    IntermediatesCache.pin_memory = lambda *_: None


def _restore(model: Any, norms: dict[str, Any]) -> None:
    """Put norms and biases back: Gemma's go through 1 + w and back in 16 bits, though only AWQ changes them."""
    import torch

    with torch.no_grad():
        for name, value in model.named_parameters():
            if name in norms:
                value.copy_(norms[name])


def _say(text: str) -> None:
    sys.stderr.write(f"tuneserve: {text}\n")
    sys.stderr.flush()


def _end_with_parent() -> None:
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
