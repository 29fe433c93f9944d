"""Which of a checkpoint's tensors are the weights of linear layers, and so may be stored in fewer bits."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tuneserve.checkpoint import TensorSpec
from tuneserve.errors import SpecError
from tuneserve.spec import check_buildable

# Checkpoints keep experts apart that Transformers holds as one parameter.
_EXPERT = re.compile(r".*\.experts\.\d+\.[^.]+\.weight")
_TOWER = re.compile(r"(^|\.)(vision|visual|audio|multi_modal|embed_vision|embed_audio)")


@dataclass(frozen=True)
class LinearWeights:
    """The decoder's linear weights by their names in the checkpoint.

    ``modules`` are those of Transformers' linear modules, ``experts`` those of single experts, and ``transposed`` those
    of Conv1D modules, (in, out); ``others`` are the modules of further matrices, which stay as they are: the output
    head, routers, towers.
    """

    modules: tuple[str, ...]
    experts: tuple[str, ...]
    transposed: tuple[str, ...]
    others: tuple[str, ...]


def linear_weights(tensors: Mapping[str, TensorSpec], config: Mapping[str, Any]) -> LinearWeights:
    """Tell the tensors of a model apart, by what the modules are that Transformers makes of its configuration.

    Raises:
        SpecError: Transformers does not build the architecture.
    """
    model = _on_meta(config)
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    inside = dict(decoder.named_modules())
    kinds = {name: type(module).__name__ for name, module in inside.items() if module is not head}
    linear = {name for name, module in inside.items() if isinstance(module, torch.nn.Linear) and module is not head}
    embeddings = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)}
    found: dict[str, list[str]] = {"modules": [], "experts": [], "transposed": [], "others": []}
    for name, spec in tensors.items():
        module = name.removesuffix(".weight")
        if module == name or len(spec.shape) != 2:
            continue
        inner = None if _TOWER.search(module) else _inner(module, kinds)
        if inner in linear:
            found["modules"].append(name)
        elif _EXPERT.fullmatch(name):
            found["experts"].append(name)
        elif inner is not None and kinds[inner] == "Conv1D":
            found["transposed"].append(name)
        elif _inner(module, embeddings) is None:
            found["others"].append(module)
    if head is not None and not any(module.endswith("lm_head") for module in found["others"]):
        found["others"].append("lm_head")
    return LinearWeights(**{kind: tuple(names) for kind, names in found.items()})


def _inner(module: str, known: Mapping[str, object] | set[str]) -> str | None:
    """Return the longest ending of ``module`` that is in ``known``: checkpoints differ in what stands before it."""
    parts = module.split(".")
    endings = (".".join(parts[start:]) for start in range(len(parts)))
    return next((ending for ending in endings if ending in known), None)


def _on_meta(config: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    check_buildable(config)
    plain = {key: value for key, value in config.items() if key not in ("quantization_config", "auto_map")}
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.for_model(**plain), trust_remote_code=False)
    # Of a configuration that makes no sense, each class of the library complains in its own way.
    except Exception as error:
        raise SpecError(
            f"Transformers does not build the architecture {str(config.get('model_type'))[:40]!r} of this config.json, "
            "so which of its weights may be quantised is not known; use the method merged_16bit."
        ) from error
