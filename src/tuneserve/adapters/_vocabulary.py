"""Embedding and head: trained in full, by token, resized, and tied to each other.

The reference is PEFT's model unmerged. There a head that is tied to the embedding keeps the base's weights when only
the embedding is adapted, and the other way round, so that the two part; they stay one where PEFT trains them as one.
"""

from tuneserve.adapters._draft import Draft, Slot, ties_embeddings
from tuneserve.adapters._edits import ReplaceRows
from tuneserve.adapters._keys import Pair
from tuneserve.adapters._open import LoraAdapter


def put_base(draft: Draft, adapter: LoraAdapter) -> None:
    """Put the copies of the base's own weights that the adapter's file holds in their place."""
    for parameter, name in adapter.keys.base.items():
        _put_base(draft, adapter, parameter, name)
    for parameter, name in adapter.keys.saved.items():
        if _is_vocabulary(draft, parameter) and not adapter.rules.is_saved(parameter):
            _put_base(draft, adapter, parameter, name)


def put_saved(draft: Draft, adapter: LoraAdapter) -> None:
    """Put the weights that were trained in full (``modules_to_save``, ``bias``) in the base's place."""
    rules, config = adapter.rules, adapter.config
    for parameter, name in adapter.keys.saved.items():
        slot = draft.slot(parameter)
        if rules.is_saved(parameter):
            if slot is None:
                draft.problems.append(f"{parameter}, which was trained in full, is not in the base")
                continue
            _replace(draft, slot, adapter, name)
            if config.ensure_weight_tying and draft.tied and slot.name == draft.embedding and draft.head is not None:
                _replace(draft, draft.slot_named(draft.head), adapter, name)
        elif slot is not None and parameter.endswith(".bias") and config.bias == "all":
            _replace(draft, slot, adapter, name)
        elif not _is_vocabulary(draft, parameter):
            draft.problems.append(f"{parameter} is in the file, and the configuration does not account for it")
    for module in config.modules_to_save:
        in_base = any(rules.belongs(draft.names.parameter(name), module) for name in draft.weights.tensors)
        if in_base and not any(rules.belongs(parameter, module) for parameter in adapter.keys.saved):
            draft.problems.append(f"{module} was trained in full (modules_to_save) but is not in the file")


def add_tokens(draft: Draft, adapter: LoraAdapter) -> None:
    """Put token embeddings that were trained by themselves (``trainable_token_indices``) in their rows."""
    for module, name in adapter.keys.tokens.items():
        slot = draft.slot(f"{module}.weight")
        if slot is None:
            draft.problems.append(f"{module} is not in the base")
            continue
        indices = _trained_indices(draft, adapter, module, slot)
        is_tied = draft.tied and _tokens_are_tied(draft, adapter)
        if slot.name == draft.head and is_tied and indices in (None, _embedding_tokens(draft, adapter)):
            continue  # saved once more; the embedding's rows count
        if indices is None or adapter.checkpoint.tensors[name].shape != (len(indices), *slot.shape[1:]):
            draft.problems.append(f"the trained tokens of {module} do not fit trainable_token_indices")
        elif max(indices, default=0) >= slot.shape[0]:
            draft.problems.append(f"{module} has {slot.shape[0]} rows, and token {max(indices)} was trained")
        else:
            edit = ReplaceRows(adapter.checkpoint, name, indices)
            slot.edit(edit)
            if is_tied and slot.name == draft.embedding and draft.head is not None:
                draft.slot_named(draft.head).edit(edit)
    for key in adapter.config.trained_tokens:
        tied_head = draft.tied and _vocabulary_name(draft, key) == draft.head and _tokens_are_tied(draft, adapter)
        if not tied_head and not any(module.endswith(key or module) for module in adapter.keys.tokens):
            draft.problems.append(f"the trained tokens of {key or 'the embedding'} are not in the file")


def share_tied_delta(draft: Draft, adapter: LoraAdapter) -> None:
    """Keep embedding and head one where PEFT trained one delta for both (``ensure_weight_tying``).

    Reads those deltas, because PEFT trains them apart on a 16-bit base in spite of the setting.
    """
    if not adapter.config.ensure_weight_tying or not draft.tied or draft.embedding is None or draft.head is None:
        return
    pairs = {draft.find(f"{module}.weight"): (module, pair) for module, pair in adapter.keys.pairs.items()}
    if draft.embedding in pairs and draft.head in pairs and not draft.problems:
        (embedding, ours), (head, theirs) = pairs[draft.embedding], pairs[draft.head]
        same_scale = adapter.rules.scaling(embedding) == adapter.rules.scaling(head)
        if same_scale and not ours.magnitude and _is_transpose(adapter, ours, theirs):
            draft.slot_named(draft.head).edits = list(draft.slot_named(draft.embedding).edits)


def settle_vocabulary(draft: Draft) -> None:
    """Decide whether embedding and head are still tied, and how large the vocabulary is now."""
    if draft.embedding is None:
        return
    slots = draft.vocabulary_slots()
    if not any(slot.changed for slot in slots):
        for slot in slots:
            draft.slots.pop(slot.name)
        return
    rows = {slot.shape[0] for slot in slots}
    if len(rows) > 1:
        draft.problems.append(
            f"the embedding has {slots[0].shape[0]} rows and the head {slots[1].shape[0]}, because the adapter holds "
            "only one of them; save it with save_embedding_layers=True"
        )
    elif rows != {draft.weights.tensors[draft.embedding].shape[0]}:
        draft.config_changes["vocab_size"] = rows.pop()
    if draft.tied and draft.head is not None:
        embedding, head = slots
        if head.same_as(embedding):
            if head.name not in draft.weights.tensors:
                draft.slots.pop(head.name)
        else:
            head.changed = head.changed or head.name not in draft.weights.tensors
            draft.config_changes["tie_word_embeddings"] = False
    elif ties_embeddings(draft.config) is None:
        # Some families tie unless told otherwise.
        draft.config_changes["tie_word_embeddings"] = False


def _put_base(draft: Draft, adapter: LoraAdapter, parameter: str, name: str) -> None:
    slot = draft.slot(parameter)
    if slot is None:
        draft.problems.append(f"{parameter} is not in the base")
    elif draft.tied and slot in draft.vocabulary_slots():
        for tied in draft.vocabulary_slots():
            _replace(draft, tied, adapter, name)
    else:
        _replace(draft, slot, adapter, name)


def _replace(draft: Draft, slot: Slot, adapter: LoraAdapter, name: str) -> None:
    shape = adapter.checkpoint.tensors[name].shape
    may_grow = draft.embedding is not None and slot.name in (draft.embedding, draft.head)
    if shape == slot.shape or (may_grow and len(shape) == 2 and shape[0] and shape[1:] == slot.shape[1:]):
        slot.replace(adapter.checkpoint, name)
    else:
        draft.problems.append(f"{name} is {list(shape)} here and {list(slot.shape)} in the base")


def _is_vocabulary(draft: Draft, parameter: str) -> bool:
    name = draft.find(parameter)
    return name is not None and name in (draft.embedding, draft.head)


def _trained_indices(draft: Draft, adapter: LoraAdapter, module: str, slot: Slot) -> tuple[int, ...] | None:
    for key, indices in adapter.config.trained_tokens.items():
        if module.endswith(key) if key is not None else slot.name == draft.embedding:
            return indices
    return None


def _embedding_tokens(draft: Draft, adapter: LoraAdapter) -> tuple[int, ...] | None:
    found = [
        indices
        for key, indices in adapter.config.trained_tokens.items()
        if _vocabulary_name(draft, key) == draft.embedding
    ]
    return found[0] if found else None


def _tokens_are_tied(draft: Draft, adapter: LoraAdapter) -> bool:
    """Whether PEFT gives a tied head the embedding's trained tokens: unless it is told different ones for the head."""
    ours = _embedding_tokens(draft, adapter)
    if ours is None:
        return False
    theirs = [
        indices for key, indices in adapter.config.trained_tokens.items() if _vocabulary_name(draft, key) == draft.head
    ]
    return adapter.config.ensure_weight_tying or all(indices == ours for indices in theirs)


def _vocabulary_name(draft: Draft, key: str | None) -> str | None:
    """Return the tensor of the embedding or the head that a key of ``trainable_token_indices`` means."""
    if key is None:
        return draft.embedding
    for name in (draft.embedding, draft.head):
        if name is not None and draft.names.parameter(name).removesuffix(".weight").endswith(key):
            return name
    return None


def _is_transpose(adapter: LoraAdapter, embedding: Pair, head: Pair) -> bool:
    import torch

    read = adapter.checkpoint.read
    return torch.equal(read(embedding.a).T, read(head.b)) and torch.equal(read(embedding.b).T, read(head.a))
