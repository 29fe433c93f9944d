"""PEFT's own layers, unmerged, over a model whose weights are not there yet."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tuneserve.adapters import check_patterns_end
from tuneserve.errors import AdapterError
from tuneserve.parity._shell import quiet, unloadable
from tuneserve.sources import read_config

_NAME = "default"
# Initialisations that leave the base as it is, so that an adapter loads without its weights.
_PLAIN = (None, True, False, "gaussian", "eva", "orthogonal")
_PROMPTS = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CARTRIDGE")


def needs_whole_base(directory: Path) -> str | None:
    """Return why PEFT needs the base's weights to load the adapter in ``directory``, None where it does not.

    Raises:
        AdapterError: the adapter consists of prompts, which no merge can hold.
        SourceError: its configuration cannot be read.
    """
    config = read_config(directory / "adapter_config.json")
    kind, initial = str(config.get("peft_type")), config.get("init_lora_weights", True)
    if kind in _PROMPTS:
        raise AdapterError(
            f"{directory} is of kind {kind}, which puts learnt vectors before the prompt and has no weights to merge; "
            "serve it with PEFT."
        )
    if kind != "LORA":
        return f"the adapter's kind {kind[:40]} may read the base as it loads"
    if initial not in _PLAIN:
        return f"init_lora_weights={json.dumps(initial)[:40]} changes the base as it loads"
    return None


def attach(model: Any, directory: Path, name: str, *, empty: bool) -> tuple[Any, frozenset[tuple[int, str]]]:
    """Return ``model`` with the adapter in ``directory`` on top, in float32, and which weights that replaced.

    ``empty`` says that the adapter loads without the base, whose weights are on the meta device. They are so afterwards
    too, those aside that the adapter brings itself, like biases: each of these is given as the ``id`` of its module and
    its name in it.

    Raises:
        SourceError: PEFT cannot load it.
        AdapterError: its patterns take too long to match.
    """
    check_patterns_end(directory, (module for module, _ in model.named_modules()))
    try:
        with quiet(), _stand_ins(model) as replaced:
            from peft import PeftModel

            tuned = PeftModel.from_pretrained(
                model, str(directory), adapter_name=_NAME, low_cpu_mem_usage=empty, torch_device="cpu"
            )
    except Exception as error:
        raise unloadable(name, error) from error
    for parameter in tuned.parameters():
        parameter.requires_grad_(False)
        if parameter.device.type != "meta" and parameter.is_floating_point():
            parameter.data = parameter.data.float()
    return tuned.eval(), frozenset(replaced)


@contextmanager
def _stand_ins(model: Any) -> Iterator[set[tuple[int, str]]]:
    """Put one zero, seen as a whole tensor, where a weight is on the meta device; yield what is replaced within.

    PEFT moves an adapter to the device of what it adapts, and on the meta device its weights would be lost.
    """
    zero = torch.zeros(())
    places = []
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                present = parameter
                if parameter.device.type == "meta":
                    present = torch.nn.Parameter(zero.expand(parameter.shape), requires_grad=False)
                places.append((module, name, parameter, present))
    for module, name, _, present in places:
        module._parameters[name] = present
    replaced: set[tuple[int, str]] = set()
    try:
        yield replaced
    finally:
        for module, name, parameter, present in places:
            if module._parameters.get(name) is present:
                module._parameters[name] = parameter
            else:
                replaced.add((id(module), name))


def wrappers(tuned: Any) -> dict[int, Any]:
    """Return PEFT's outermost layer around each module that it adapts, by the ``id`` of that module."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    found: dict[int, Any] = {}
    for module in tuned.modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            found.setdefault(id(module.original_module), module)
        elif isinstance(module, BaseTunerLayer):
            found.setdefault(id(module.get_base_layer()), module)
    return found


def reads_rows(wrapper: Any) -> bool:
    """Return whether ``wrapper`` leaves its module's weight to the module itself, as plain LoRA does."""
    from peft.tuners.lora import Embedding, Linear

    return isinstance(wrapper, Embedding | Linear) and not wrapper.lora_variant


@contextmanager
def merged(module: Any, wrapper: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Within, yield the weights of ``module`` (in float32, by their names in it) with the adapter in them.

    PEFT merges them, in float32 and into a copy that is dropped afterwards.

    Raises:
        RuntimeError: PEFT cannot merge this layer.
    """
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(wrapper, ModulesToSaveWrapper):
        yield dict(wrapper.modules_to_save[_NAME].named_parameters(recurse=False))
        return
    before = {name: parameter.data for name, parameter in module.named_parameters(recurse=False)}
    layers = _layers(wrapper)
    try:
        for name, parameter in module.named_parameters(recurse=False):
            parameter.data = before[name].clone()
        for layer in layers:
            layer.merge()
        yield {name: parameter.data for name, parameter in module.named_parameters(recurse=False)}
    finally:
        for name, parameter in module.named_parameters(recurse=False):
            parameter.data = before[name]
        for layer in layers:
            layer.merged_adapters.clear()


def _layers(wrapper: Any) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import TrainableTokensWrapper

    layer = wrapper.token_adapter if isinstance(wrapper, TrainableTokensWrapper) else wrapper
    layers = []
    while isinstance(layer, BaseTunerLayer):
        layers.append(layer)
        layer = layer.base_layer
    return layers
