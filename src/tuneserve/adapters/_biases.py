"""Biases that an adapter brings (``lora_bias``), also to layers that had none."""

from tuneserve.adapters._draft import Draft, Slot
from tuneserve.adapters._edits import AddVector
from tuneserve.adapters._keys import Pair
from tuneserve.adapters._open import LoraAdapter

_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
# The flags of Transformers' configurations that give these modules of every layer a bias, by family.
_ATTENTION_BIAS = frozenset({
    "arcee", "cohere", "cohere2", "diffllama", "gemma", "gemma2", "gemma3", "gemma3_text", "gpt_oss", "granite",
    "granitemoe", "llama", "olmo", "olmo2", "olmo3", "qwen3", "qwen3_moe", "smollm3",
})  # fmt: skip
_MLP_BIAS = frozenset({"granite", "helium", "llama", "seed_oss", "smollm3"})


def add_bias(draft: Draft, adapter: LoraAdapter, module: str, pair: Pair, scaling: float) -> None:
    """Add the bias of ``module``'s B matrix to the draft, and to the configuration where the base has none there."""
    outputs = adapter.checkpoint.tensors[pair.b].shape[0]
    spec = adapter.checkpoint.tensors.get(pair.bias)
    if spec is None or spec.shape != (outputs,):
        draft.problems.append(f"{module} has no bias of the right shape for lora_bias")
        return
    if not adapter.config.lora_bias:
        draft.problems.append(f"{module} has a bias in the file but the configuration does not say lora_bias")
        return
    slot = draft.slot(f"{module}.bias") or _new_bias(draft, module)
    if slot is None:
        draft.problems.append(
            f"{module} gets a bias (lora_bias), and {draft.family} models have none there; serve it unmerged with PEFT"
        )
    elif slot.shape != (outputs,):
        draft.problems.append(f"the bias of {module} has {outputs} values here and {slot.shape} in the base")
    else:
        slot.edit(AddVector(adapter.checkpoint, pair.bias, scaling))


def _new_bias(draft: Draft, module: str) -> Slot | None:
    for flag, families, group in (
        ("attention_bias", _ATTENTION_BIAS, _ATTENTION),
        ("mlp_bias", _MLP_BIAS, _MLP),
    ):
        if draft.family in families and module.endswith(group):
            if flag not in draft.config_changes:
                draft.config_changes[flag] = True
                _give_biases(draft, group)
            return draft.slots.get((draft.find(f"{module}.weight") or "").removesuffix("weight") + "bias")
    return None


def _give_biases(draft: Draft, group: tuple[str, ...]) -> None:
    """Give every module of ``group`` a bias of zeros, as the configuration's flag does."""
    for name, spec in draft.weights.tensors.items():
        module = name.removesuffix(".weight")
        bias = f"{module}.bias"
        if name != module and module.endswith(group) and bias not in draft.weights.tensors:
            slot = Slot(bias, spec.dtype, spec.shape[:1], None, bias)
            slot.changed = True
            draft.slots[bias] = slot
