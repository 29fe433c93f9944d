"""From one LoRA adapter to the edits of the base's weights."""

from collections.abc import Iterable

from tuneserve.adapters._biases import add_bias
from tuneserve.adapters._draft import Draft, Slot
from tuneserve.adapters._edits import AddLowRank, Dora, Edit, Factors
from tuneserve.adapters._experts import add_experts
from tuneserve.adapters._keys import Pair
from tuneserve.adapters._open import LoraAdapter
from tuneserve.adapters._residual import Residual
from tuneserve.adapters._vocabulary import add_tokens, put_base, put_saved, share_tied_delta

# Their linear layers are Transformers' Conv1D, which stores weights as (in, out).
_CONV1D = {"gpt2", "imagegpt", "openai-gpt", "decision_transformer"}
_CONV1D_MODULES = ("c_attn", "c_fc", "c_proj", "q_attn")


def add_adapter(draft: Draft, adapter: LoraAdapter, weight: float) -> None:
    """Add what ``adapter`` changes, times ``weight``, to the draft; what does not fit becomes its problems."""
    if weight != 1.0:
        draft.problems += [f"{what} cannot be weighted" for what in beyond_low_rank(adapter)]
    put_base(draft, adapter)
    put_saved(draft, adapter)
    add_tokens(draft, adapter)
    for module, pair in adapter.keys.pairs.items():
        if not pair.a or not pair.b:
            draft.problems.append(f"{module} has no lora_A and lora_B")
        elif not add_experts(draft, adapter, module, pair, weight):
            _add_pair(draft, adapter, module, pair, weight)
    share_tied_delta(draft, adapter)
    check_complete(draft, adapter)


def beyond_low_rank(adapter: LoraAdapter) -> list[str]:
    """Return what the adapter holds beside plain low-rank deltas."""
    config = adapter.config
    found = {
        "DoRA": config.use_dora,
        "lora_bias": config.lora_bias,
        "trained biases": config.bias != "none",
        "modules trained in full": bool(config.modules_to_save),
        "trained tokens": bool(config.trained_tokens),
        f"the {config.residual} initialisation": bool(config.residual),
    }
    return [name for name, is_there in found.items() if is_there]


def factors_of(draft: Draft, adapter: LoraAdapter, module: str, pair: Pair) -> tuple[Slot, Factors] | None:
    """Return the weight of ``module`` and the delta's factors in its orientation; None, with a problem, if unfit."""
    slot = draft.slot(f"{module}.weight")
    if slot is None:
        draft.problems.append(f"{module} is not in the base")
        return None
    a, b = (adapter.checkpoint.tensors[name].shape for name in (pair.a, pair.b))
    rank = adapter.rules.rank(module)
    if len(a) < 2 or len(b) != len(a) or not a[0] == b[1] == rank or any(size != 1 for size in b[2:]):
        draft.problems.append(f"{module} has A {by(a)} and B {by(b)} where the configuration says rank {rank}")
        return None
    inner, outer = a[1:], b[:1]
    direct, turned = slot.shape == outer + inner, slot.shape == inner + outer
    if pair.is_embedding:
        direct, turned = False, slot.shape == inner + outer
    if not direct and not turned:
        draft.problems.append(f"{module} is {by(outer + inner)} here and {by(slot.shape)} in the base")
        return None
    transposed = turned if direct != turned else _stored_transposed(draft, adapter, module)
    return slot, Factors(adapter.checkpoint, pair.a, pair.b, transposed)


def _add_pair(draft: Draft, adapter: LoraAdapter, module: str, pair: Pair, weight: float) -> None:
    rules, config = adapter.rules, adapter.config
    if not is_expected(draft, adapter, module):
        draft.problems.append(f"{module} has a delta in the file but is not a target")
        return
    found = factors_of(draft, adapter, module, pair)
    if found is None:
        return
    slot, factors = found
    scaling = rules.scaling(f"{module}.weight" if rules.is_target_parameter(f"{module}.weight") else module)
    delta = AddLowRank(factors, scaling * weight)
    edits: list[Edit] = [delta]
    # PEFT initialises embeddings as ever, and a copy of the base in the file is what the initialisation left of it.
    if config.residual and not pair.is_embedding and f"{module}.weight" not in adapter.keys.base:
        tied = draft.tied and slot.name in (draft.embedding, draft.head)
        turned = config.residual == "olora" and factors.transposed and slot.shape[0] != slot.shape[1]
        if len(slot.shape) != 2 or tied or turned:
            draft.problems.append(f"{module} cannot have been initialised with {config.residual}")
            return
        edits.insert(0, Residual(config.residual, rules.rank(module), scaling, slot.dtype, factors.transposed))
    if config.use_dora:
        outputs = adapter.checkpoint.tensors[pair.b].shape[0]
        magnitude = adapter.checkpoint.tensors.get(pair.magnitude)
        if magnitude is None or magnitude.shape not in (
            (outputs,),
            (1, outputs, *slot.shape[2:2], *(1,) * len(slot.shape[2:])),
        ):
            draft.problems.append(f"{module} has no magnitudes of the right shape for DoRA")
            return
        edits[-1] = Dora(delta, adapter.checkpoint, pair.magnitude, factors.transposed)
    elif pair.magnitude:
        draft.problems.append(f"{module} has magnitudes but the configuration does not say use_dora")
        return
    slot.edit(*edits)
    if pair.bias or config.lora_bias:
        add_bias(draft, adapter, module, pair, scaling)


def is_expected(draft: Draft, adapter: LoraAdapter, module: str) -> bool:
    """Return whether the configuration accounts for a delta of ``module`` in the file."""
    rules = adapter.rules
    tied_head = adapter.config.ensure_weight_tying and draft.tied and draft.find(f"{module}.weight") == draft.head
    return tied_head or rules.is_target(module) or rules.is_target_parameter(f"{module}.weight")


def _stored_transposed(draft: Draft, adapter: LoraAdapter, module: str) -> bool:
    """Decide the orientation of a square weight."""
    conv1d = draft.family in _CONV1D and module.rpartition(".")[2] in _CONV1D_MODULES
    if adapter.config.fan_in_fan_out and not conv1d and draft.family not in _CONV1D:
        draft.problems.append(f"{module} is square and fan_in_fan_out is set, so which way it is stored is unknown")
    return conv1d


def check_complete(draft: Draft, adapter: LoraAdapter) -> None:
    """Note each module that is a target by the configuration but has no delta in the file, or has two of something."""
    _check_distinct(draft, adapter)
    if adapter.rules.is_all_linear:
        return
    touched = {draft.find(f"{module}.weight") for module in adapter.keys.pairs}
    has_expert_modules = any(".experts." in module for module in adapter.keys.pairs)
    stored = [name for name, spec in draft.weights.tensors.items() if name.endswith(".weight") and len(spec.shape) == 2]
    if draft.tied and draft.head is not None and draft.head not in draft.weights.tensors:
        stored.append(draft.head)
    for name in stored:
        module = draft.names.parameter(name).removesuffix(".weight")
        # Transformers 5 keeps experts in one parameter, which the names of target modules do not reach.
        if name in touched or draft.is_left_out(name) or (".experts." in module and not has_expert_modules):
            continue
        if adapter.rules.is_target(module):
            draft.problems.append(f"{module} is a target but has no delta in the file")


def _check_distinct(draft: Draft, adapter: LoraAdapter) -> None:
    """Note each weight that the file names in two ways, of which PEFT would load one."""
    keys = adapter.keys
    for modules in (keys.pairs, keys.tokens):
        _check_names(draft, [f"{module}.weight" for module in modules])
    for parameters in (keys.saved, keys.base):
        _check_names(draft, parameters)


def _check_names(draft: Draft, parameters: Iterable[str]) -> None:
    found: dict[str, str] = {}
    for parameter in parameters:
        name = draft.find(parameter)
        if name is not None and found.setdefault(name, parameter) != parameter:
            draft.problems.append(f"{parameter} and {found[name]} are one and the same weight of the base")


def by(shape: tuple[int, ...]) -> str:
    """Write a shape."""
    return "×".join(map(str, shape))
