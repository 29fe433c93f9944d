"""The merged model as it is planned: each weight with its source and the edits collected so far."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tuneserve.adapters._edits import Edit
from tuneserve.adapters._names import TensorNames
from tuneserve.checkpoint import TensorSpec, WeightReader

_LAYER = re.compile(r"(?:(?:language_|text_)?model\.)*layers\.(?P<index>\d{1,6})\..*")
_EMBEDDINGS = ("embed_in", "embed_tokens", "tok_embeddings", "word_embeddings", "wte")
_HEADS = ("embed_out", "lm_head")


@dataclass
class Slot:
    """A weight: where it is read from, its shape, and what is done to it.

    ``dtype`` is that of the base (safetensors' name for it), whatever an adapter's replacement is stored in.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    reader: WeightReader | None
    source: str
    edits: list[Edit] = field(default_factory=list)
    changed: bool = False

    def replace(self, reader: WeightReader, source: str) -> None:
        """Read the weight from elsewhere; its shape becomes what is there."""
        self.reader, self.source, self.shape = reader, source, reader.tensors[source].shape
        self.edits, self.changed = [], True

    def edit(self, *edits: Edit) -> None:
        """Append edits."""
        self.edits += edits
        self.changed = True

    def same_as(self, other: "Slot") -> bool:
        """Return whether the two weights have the same source and edits."""
        return self.reader is other.reader and self.source == other.source and self.edits == other.edits


class Draft:
    """The base's weights as slots, made when they are asked for; ``problems`` collects why the merge cannot be."""

    def __init__(self, weights: WeightReader, config: Mapping[str, Any]) -> None:
        self.weights = weights
        self.config = config
        self.names = TensorNames(weights.tensors)
        self.slots: dict[str, Slot] = {}
        self.problems: list[str] = []
        self.config_changes: dict[str, Any] = {}
        embeddings, heads = _matrices(weights.tensors, _EMBEDDINGS), _matrices(weights.tensors, _HEADS)
        self.embedding = embeddings[0] if len(embeddings) == 1 else None
        # A head that is not stored is tied, whatever a configuration that leaves out its defaults says.
        self.tied = self.embedding is not None and len(heads) < 2 and (not heads or ties_embeddings(config) is True)
        self.head = heads[0] if len(heads) == 1 else None
        if self.embedding is not None and not heads:
            self.head = _head_name(self.embedding)

    @property
    def family(self) -> str:
        """The base's ``model_type``."""
        return str(self.config.get("model_type"))

    def find(self, parameter: str) -> str | None:
        """Return the name of the tensor that ``parameter`` of the trained model is, stored or not (a tied head)."""
        name = self.names.find(parameter)
        if name is None and self.tied and parameter.endswith("lm_head.weight"):
            return self.head
        return name

    def is_left_out(self, name: str) -> bool:
        """Return whether the tensor ``name`` predicts several tokens at once, which Transformers leaves out."""
        if "mtp" in name.split("."):
            return True
        text_config = self.config.get("text_config")
        config = text_config if isinstance(text_config, Mapping) else self.config
        layers, found = config.get("num_hidden_layers"), _LAYER.fullmatch(name)
        return isinstance(layers, int) and found is not None and int(found["index"]) >= layers

    def slot(self, parameter: str) -> Slot | None:
        """Return the slot of ``parameter`` of the trained model, None where the base has no such tensor."""
        name = self.find(parameter)
        return None if name is None else self.slot_named(name)

    def slot_named(self, name: str) -> Slot:
        """Return the slot of the tensor ``name``; of a head that is not stored, which begins as the embedding."""
        if name not in self.slots:
            source = name if name in self.weights.tensors else self.embedding
            assert source is not None, f"{name} is neither stored nor tied"
            spec = self.weights.tensors[source]
            self.slots[name] = Slot(name, spec.dtype, spec.shape, self.weights, source)
        return self.slots[name]

    def vocabulary_slots(self) -> tuple[Slot, ...]:
        """Return the slots of the embedding and the head, as far as there are such."""
        return tuple(self.slot_named(name) for name in (self.embedding, self.head) if name is not None)


def ties_embeddings(config: Mapping[str, Any]) -> bool | None:
    """Return whether ``config`` says that the head is the embedding; None where it does not say."""
    text_config = config.get("text_config")
    nested = text_config.get("tie_word_embeddings") if isinstance(text_config, Mapping) else None
    value = config.get("tie_word_embeddings", nested)
    return value if isinstance(value, bool) else None


def _matrices(tensors: Mapping[str, TensorSpec], names: tuple[str, ...]) -> list[str]:
    ends = tuple(f"{name}.weight" for name in names)
    return [
        name
        for name, spec in tensors.items()
        if f".{name}".endswith(tuple(f".{end}" for end in ends)) and len(spec.shape) == 2
    ]


def _head_name(embedding: str) -> str:
    return "language_model.lm_head.weight" if embedding.startswith("language_model.") else "lm_head.weight"
