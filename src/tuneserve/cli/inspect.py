"""``tuneserve inspect``."""

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tuneserve.sources import ResolvedSource


def inspect(
    source: Annotated[str, typer.Argument(help="A directory, org/name@revision, demo or demo:tickets.")],
    base: Annotated[str | None, typer.Option(help="Use this base instead of the one the adapter names.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say what a model or adapter is and what can run it, from its configurations and headers alone.

    [dim]tuneserve inspect outputs/my-adapter[/dim]
    """
    from tuneserve.cli._run import output, print_json
    from tuneserve.sources import resolve

    resolved = resolve(source, base=base)
    facts = {
        "name": resolved.name,
        "kind": "adapter" if resolved.adapter_dir else "model",
        "base": resolved.base_name,
        **_model(resolved),
        **_adapter(resolved),
        **_text(resolved),
        **_native(resolved),
    }
    if as_json:
        print_json(facts)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        if value is not None:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            output.print(f"{name.replace('_', ' '):<{width}}  {shown}", markup=False, soft_wrap=True)


def _model(source: "ResolvedSource") -> dict[str, Any]:
    from tuneserve.checkpoint.quantised import quantisation_method
    from tuneserve.sources import open_model

    weights, config = open_model(source)
    tensors = weights.tensors.values()
    return {
        "family": config.get("model_type"),
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "file_bytes": sum(path.stat().st_size for path in weights.files),
        "quantised": "gguf" if source.weights_file else quantisation_method(config),
        "base_precision": source.base_precision,
        "dtypes": sorted({tensor.dtype for tensor in tensors}),
        "context_length": config.get("max_position_embeddings"),
    }


def _adapter(source: "ResolvedSource") -> dict[str, Any]:
    from tuneserve.adapters import open_adapter
    from tuneserve.errors import AdapterError

    if source.adapter_dir is None:
        return {}
    try:
        adapter = open_adapter(source.adapter_dir)
        ranks = adapter.ranks
    except AdapterError as error:
        return {"adapter": f"not mergeable: {error}"}
    return {
        "adapter": adapter.kind,
        "ranks": list(ranks) or None,
        "adapted_modules": len(adapter.modules),
        "targets": sorted({module.rpartition(".")[2] for module in adapter.modules}),
    }


def _text(source: "ResolvedSource") -> dict[str, Any]:
    from tuneserve.errors import TextError
    from tuneserve.text import open_chat_template, open_tokenizer

    try:
        tokenizer = open_tokenizer(source.tokenizer_dir, source.model_dir)
        template = open_chat_template(source.tokenizer_dir, source.model_dir)
    except TextError as error:
        return {"tokenizer": f"not usable: {error}"}
    stops = [tokenizer.decode([index], skip_special_tokens=False) for index in sorted(tokenizer.end_token_ids)]
    return {
        "tokenizer": f"{tokenizer.vocab_size} tokens",
        "chat_template": f"yes, {len(template.source)} characters" if template else "none",
        "stop_tokens": stops,
    }


def _native(source: "ResolvedSource") -> dict[str, Any]:
    from tuneserve.errors import SpecError
    from tuneserve.sources import read_config
    from tuneserve.spec import computation_of

    config = read_config(source.model_dir / "config.json")
    try:
        # Quantised weights are dequantised as they are read.
        computation = computation_of({key: value for key, value in config.items() if key != "quantization_config"})
    except SpecError as error:
        return {"native_engine": f"no: {error}"}
    if computation.spec is None:
        return {"native_engine": f"through Transformers (slower): {computation.reason}"}
    return {"native_engine": "yes"}
