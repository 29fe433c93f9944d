"""What a plan must know of a source, from configurations and headers alone."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tuneserve.adapters import Adapter, LoraAdapter, MergedModel, WeightedAdapter, merge_model, open_adapter
from tuneserve.checkpoint import DTYPE_BITS
from tuneserve.errors import SpecError
from tuneserve.planner._cache import CacheShape, read_cache
from tuneserve.sources import ResolvedSource, open_model
from tuneserve.spec import Fields, read_spec

_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|tok_embeddings|word_embeddings)\.weight")
_HEAD = re.compile(r"(^|\.)(lm_head|output|embed_out)\.weight")
_EXPERTS = re.compile(r"\.experts\.")
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class Experts:
    """``used`` of ``count`` per token."""

    count: int
    used: int

    def read_share(self, sequences: int) -> float:
        """Return the share of all experts that a step of so many sequences reads, if they choose independently."""
        return 1.0 - (1.0 - self.used / self.count) ** sequences


@dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """A source, merged on paper.

    ``merged`` has what each tensor would be; ``native_problem`` says why the native engine does not run the family,
    None where it does.
    """

    source: ResolvedSource
    family: str
    config: Mapping[str, Any]
    merged: MergedModel
    adapter: Adapter | None
    cache: CacheShape
    experts: Experts | None
    native_problem: str | None

    @property
    def context(self) -> int | None:
        """Tokens that the model was made for, None where its configuration does not say."""
        return self.cache.context

    @cached_property
    def parameters(self) -> int:
        """Elements of all weights."""
        return sum(spec.nbytes * 8 // DTYPE_BITS[spec.dtype] for spec in self.merged.tensors.values())

    @cached_property
    def unread_share(self) -> float:
        """The share of the bytes that no step reads: of an embedding that is not also the head, only rows are read."""
        return self.embedding_share if any(_HEAD.search(name) for name in self.merged.tensors) else 0.0

    @cached_property
    def embedding_share(self) -> float:
        """The share of the bytes that is the embedding."""
        tensors = self.merged.tensors.values()
        return sum(spec.nbytes for spec in tensors if _EMBEDDING.search(spec.name)) / self._bytes

    @cached_property
    def expert_share(self) -> float:
        """The share of the bytes that belongs to experts, of which a token uses a few."""
        if self.experts is None:
            return 0.0
        return sum(spec.nbytes for spec in self.merged.tensors.values() if _EXPERTS.search(spec.name)) / self._bytes

    @property
    def _bytes(self) -> int:
        return max(1, sum(spec.nbytes for spec in self.merged.tensors.values()))

    def read_share(self, sequences: int) -> float:
        """Return the share of the bytes that a decode step of so many sequences reads."""
        share = 1.0 - self.unread_share
        if self.experts is not None:
            share -= self.expert_share * (1.0 - self.experts.read_share(sequences))
        return share

    @property
    def unmerged_problems(self) -> tuple[str, ...]:
        """Why engines cannot load the adapter beside its base, so that it has to be merged; empty where they can."""
        if self.adapter is None:
            return ()
        if not isinstance(self.adapter, LoraAdapter):
            return (f"it is of kind {self.adapter.kind}",)
        config = self.adapter.config
        found = {
            "it has DoRA": config.use_dora,
            "it has lora_bias": config.lora_bias,
            "it trained biases": config.bias != "none",
            "it has modules_to_save": bool(config.modules_to_save),
            "it trained single tokens": bool(config.trained_tokens),
            "it alters parameters that are no modules": bool(config.target_parameters),
        }
        return tuple(reason for reason, holds in found.items() if holds)


def plan_model(source: ResolvedSource) -> PlannedModel:
    """Read the configurations and headers of ``source``.

    Raises:
        InputError: they are malformed, or the adapter does not fit its base.
    """
    adapter = open_adapter(source.adapter_dir) if source.adapter_dir is not None else None
    weights, config = open_model(source)
    # Other kinds are merged by PEFT, which needs torch and changes neither names nor shapes.
    planned = [WeightedAdapter(adapter)] if isinstance(adapter, LoraAdapter) else []
    merged = merge_model(weights, config, planned)
    text = _text_config(merged.config)
    return PlannedModel(
        source=source,
        family=str(text.get("model_type", "unknown"))[:40],
        config=text,
        merged=merged,
        adapter=adapter,
        cache=read_cache(text),
        experts=_experts(text),
        native_problem=_native_problem(merged.config),
    )


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the decoder's part of a multimodal wrapper's configuration."""
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, Mapping) else config


def _experts(config: Mapping[str, Any]) -> Experts | None:
    fields = Fields(config)
    name = next((name for name in _EXPERT_COUNTS if config.get(name) is not None), None)
    if name is None:
        return None
    count = fields.size(name)
    used = fields.size("num_experts_per_tok", count)
    if used > count:
        raise SpecError(f"config.json uses {used} of {count} experts; download the model again.")
    return Experts(count, used) if count > 1 else None


def _native_problem(config: Mapping[str, Any]) -> str | None:
    try:
        read_spec(config)
    except SpecError as error:
        return str(error).partition(";")[0].rstrip(".")
    return None
