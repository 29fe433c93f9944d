"""Adapters of kinds other than LoRA."""

from tuneserve.adapters._open import PeftAdapter
from tuneserve.errors import AdapterError


def refuse_kind(adapter: PeftAdapter) -> AdapterError:
    """Return why an adapter of another kind than LoRA is not merged."""
    return AdapterError(
        f"{adapter.directory} is of PEFT type {adapter.kind}, which cannot be merged yet; merge it with PEFT and "
        "export the result."
    )
