"""The exact commands that carry a plan out."""

import shlex
from dataclasses import dataclass

from tuneserve.artifacts.gguf import file_name
from tuneserve.hardware import Machine
from tuneserve.planner._model import PlannedModel
from tuneserve.planner._options import Option, Wish

_OUT = "serving_model"


@dataclass(frozen=True)
class Commands:
    """``shell`` lines in their order, ``python`` lines where that is the way, and ``notes`` about either."""

    shell: tuple[str, ...]
    python: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def commands(
    model: PlannedModel, machine: Machine, wish: Wish, taken: Option, max_running: int, unmerged: bool
) -> Commands:
    """Return what to type; each ``max_running`` sequences at most run together on one replica."""
    source = _quoted(model.source.source)
    sizes = f"--context {wish.context} --max-running {max_running}"
    if unmerged:
        return _with_adapters(model, taken, sizes)
    if taken.engine == "native":
        return _native(model, machine, wish, taken, sizes)
    if taken.engine == "unsloth":
        return Commands((f"tuneserve serve {source} --engine unsloth {sizes}",))
    shell, artifact = [], source
    if exports(model, taken):
        shell.append(f"tuneserve export {source} {_OUT} --method {taken.method}")
        artifact = _OUT
    if taken.method.startswith("gguf:"):
        artifact = f"{_OUT}/{_quoted(file_name(model.source.name, taken.method.partition(':')[2]))}"
    if machine.kind == "mac":
        return _mac(shell, artifact, taken, wish, max_running)
    if taken.engine == "vllm" and machine.count == 1:
        shell.append("tuneserve engines install vllm")
    serve = f"tuneserve serve {artifact} --engine {taken.engine} {sizes}" + _divided(taken)
    return Commands((*shell, *_replicated(serve, artifact, machine, wish, taken)), notes=_notes(wish, taken))


def exports(model: PlannedModel, taken: Option) -> bool:
    """Return whether an artifact has to be made first."""
    if taken.engine in ("native", "unsloth") or taken.method == "lora":
        return False
    source = model.source
    plain = source.adapter_dir is None and source.weights_file is None and source.base_precision is None
    return not (plain and taken.method == "merged_16bit")


def _divided(taken: Option) -> str:
    return f" --tensor-parallel {taken.tensor}" if taken.tensor > 1 else ""


def _native(model: PlannedModel, machine: Machine, wish: Wish, taken: Option, sizes: str) -> Commands:
    source = _quoted(model.source.source)
    serve = f"tuneserve serve {source} --engine native {sizes}"
    if taken.tensor > 1:
        return Commands(tuple(_replicated(serve + _divided(taken), source, machine, wish, taken)))
    if wish.objective != "simple":
        return Commands((serve,))
    python = (
        "from tuneserve import FastLanguageModel",
        f"model, tokenizer = FastLanguageModel.from_pretrained({model.source.source!r}, max_seq_length={wish.context}, "
        "load_in_4bit=False)",
        "FastLanguageModel.for_inference(model)",
    )
    return Commands((f"tuneserve chat {source}", serve), python)


def _with_adapters(model: PlannedModel, taken: Option, sizes: str) -> Commands:
    source = model.source
    base = source.base_name if source.base_name is not None else source.source
    first = [f"--adapter {_quoted(source.name.rpartition(':')[2])}={_quoted(source.source)}"] if model.adapter else []
    named = " ".join([*first, "--adapter NAME=PATH"])
    install = ["tuneserve engines install vllm"] if taken.engine == "vllm" else []
    serve = f"tuneserve serve {_quoted(base)} --engine {taken.engine} {sizes} {named}"
    return Commands((*install, serve), notes=("repeat --adapter NAME=PATH for each further adapter",))


def _replicated(serve: str, artifact: str, machine: Machine, wish: Wish, taken: Option) -> list[str]:
    if machine.count > 1:
        planned = f"--objective {wish.objective} --context {wish.context} --concurrency {wish.concurrency}"
        where = "--target kubernetes --image REGISTRY/NAME:TAG --volume CLAIM --api-key-file keys.toml"
        return [f"tuneserve deploy {artifact} deployment --hardware {machine.name} {planned} {where}"]
    if taken.replicas == 1:
        return [serve]
    lines = []
    for number in range(taken.replicas):
        devices = range(number * taken.tensor, (number + 1) * taken.tensor)
        visible = ",".join(map(str, devices))
        lines.append(f"CUDA_VISIBLE_DEVICES={visible} {serve} --port {8000 + number}")
    return lines


def _mac(shell: list[str], artifact: str, taken: Option, wish: Wish, max_running: int) -> Commands:
    notes = ("tuneserve runs on Linux: export there, and copy the result to the Mac",)
    if taken.engine == "ollama":
        lines = [f"ollama create tuned --file {_OUT}/Modelfile", "ollama run tuned"]
        return Commands((*shell, *lines), notes=notes)
    slots = f"--ctx-size {wish.context * max_running} --parallel {max_running}"
    return Commands((*shell, f"llama-server --model {artifact} {slots} --jinja"), notes=notes)


def _notes(wish: Wish, taken: Option) -> tuple[str, ...]:
    notes = []
    if wish.adapters > 1:
        notes.append(f"this serves one of the {wish.adapters} adapters; do the same for each of the others")
    if taken.method.startswith("gguf:q") and taken.method != "gguf:q8_0":
        notes.append("this GGUF type is made with llama-cpp-python: pip install 'tuneserve[gguf]'")
    return tuple(notes)


def _quoted(text: str) -> str:
    return shlex.quote(text)
