"""From a base, adapters and a dtype to the merged model, planned from headers and configurations."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tuneserve.adapters._combine import Combination, add_combined
from tuneserve.adapters._draft import Draft, Slot
from tuneserve.adapters._merged import MergedModel, Recipe
from tuneserve.adapters._open import LoraAdapter, PeftAdapter, WeightedAdapter, listed
from tuneserve.adapters._peft import PeftMerged, check_bounded
from tuneserve.adapters._plan import add_adapter
from tuneserve.adapters._vocabulary import settle_vocabulary
from tuneserve.checkpoint import TensorSpec, WeightReader
from tuneserve.errors import AdapterError, CheckpointError

_FLOATS = ("F64", "F32", "F16", "BF16")
_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_TEXT = "text_config"


def merge_model(
    weights: WeightReader,
    config: Mapping[str, Any],
    adapters: Sequence[WeightedAdapter] = (),
    dtype: Literal["bfloat16", "float16", "float32"] | None = None,
    combination: Combination | None = None,
) -> MergedModel:
    """Plan the merge of ``adapters`` into the model of ``weights`` and ``config`` (its ``config.json``).

    A base in float32 becomes bfloat16; in a 16-bit base every tensor keeps its dtype (some keep a few in float32 on
    purpose), unless ``dtype`` says otherwise. Without adapters the weights are only converted.

    Raises:
        AdapterError: an adapter does not fit the base, or asks for what cannot be merged; all reasons are listed.
        CheckpointError: the base holds an unmerged adapter.
    """
    _refuse_leftovers(weights)
    draft = Draft(weights, config)
    _add(draft, adapters, combination or Combination())
    widened = dtype is None and _mostly_float32(weights)
    target = _NAMES[dtype] if dtype is not None else "BF16" if widened else None
    recipes = _recipes(draft, target, widened)
    if draft.problems:
        raise AdapterError(
            f"{' and '.join(str(each.adapter.directory) for each in adapters)} cannot be merged into this base: "
            f"{listed(draft.problems)}; name the base that it was trained on with --base, or merge it with PEFT."
        )
    files = list(weights.files)
    for each in adapters:
        files += each.adapter.checkpoint.files
    return MergedModel(tuple(files), _config(draft, dtype or ("bfloat16" if widened else None)), recipes)


def _add(draft: Draft, adapters: Sequence[WeightedAdapter], combination: Combination) -> None:
    others = [each for each in adapters if isinstance(each.adapter, PeftAdapter)]
    if others and (len(adapters) > 1 or adapters[0].weight != 1.0):
        kinds = ", ".join(each.adapter.kind for each in others)
        raise AdapterError(f"adapters of PEFT type {kinds} cannot be combined; merge each by itself, with weight 1.")
    match [each.adapter for each in adapters]:
        case [PeftAdapter() as other]:
            _add_other(draft, other)
        case [LoraAdapter() as adapter]:
            add_adapter(draft, adapter, adapters[0].weight)
            settle_vocabulary(draft)
        case [_, *_]:
            add_combined(draft, adapters, combination)
            settle_vocabulary(draft)


def _add_other(draft: Draft, adapter: PeftAdapter) -> None:
    check_bounded(adapter)
    merged = PeftMerged(draft, adapter)
    if not merged.changed:
        draft.problems.append(f"nothing in {adapter.directory.name} is about a weight of the base")
    for name in merged.changed:
        if name not in draft.weights.tensors:
            draft.problems.append(f"{name} is tied to the embedding, which a merge by PEFT would change too")
            continue
        slot = draft.slot_named(name)
        slot.reader, slot.changed = merged, True


def _recipes(draft: Draft, target: str | None, widened: bool) -> dict[str, Recipe]:
    recipes: dict[str, Recipe] = {}
    added = {name: slot for name, slot in draft.slots.items() if name not in draft.weights.tensors}

    def put(slot: Slot) -> None:
        converts = slot.dtype in _FLOATS if not widened else slot.dtype == "F32"
        dtype = target if target is not None and converts else slot.dtype
        if slot.changed and dtype not in _FLOATS:
            draft.problems.append(f"{slot.name} of the base is {dtype}, which takes no delta")
        spec = TensorSpec(slot.name, dtype, slot.shape)
        recipes[slot.name] = Recipe(spec, slot.reader, slot.source, tuple(slot.edits), slot.changed)

    for name, spec in draft.weights.tensors.items():
        put(draft.slots.get(name) or Slot(name, spec.dtype, spec.shape, draft.weights, name))
        if (bias := name.removesuffix("weight") + "bias") in added:
            put(added.pop(bias))
    for slot in added.values():
        put(slot)
    return recipes


def _config(draft: Draft, dtype: str | None) -> dict[str, Any]:
    config = {key: value for key, value in draft.config.items() if key != "quantization_config"}
    text = dict(config[_TEXT]) if isinstance(config.get(_TEXT), Mapping) else None
    for key, value in draft.config_changes.items():
        if text is not None:
            text[key] = value
        if text is None or key in config or key == "tie_word_embeddings":
            config[key] = value
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
        if text is not None and text.keys() & {"dtype", "torch_dtype"}:
            text.pop("torch_dtype", None)
            text["dtype"] = dtype
    if text is not None:
        config[_TEXT] = text
    return config


def _mostly_float32(weights: WeightReader) -> bool:
    specs = weights.tensors.values()
    return 2 * sum(spec.nbytes for spec in specs if spec.dtype == "F32") > sum(spec.nbytes for spec in specs)


def _refuse_leftovers(weights: WeightReader) -> None:
    for name in weights.tensors:
        if ".lora_" in name or ".base_layer." in name:
            raise CheckpointError(
                f"{weights.files[0].parent} holds an unmerged adapter inside its weights ({name}); "
                "save the adapter alone with PEFT's save_pretrained and export that."
            )
