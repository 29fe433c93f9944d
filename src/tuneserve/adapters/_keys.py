"""The tensors of a LoRA adapter file, sorted by what they are for.

PEFT leaves the adapter's name out when it saves ("lora_A.weight"); older files carry it ("lora_A.default.weight").
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_PREFIX = "base_model.model."
_NAME = r"(?:\.[^.]+)?"
_LORA = re.compile(
    rf"(?P<module>.+)\.(?:lora_(?P<linear>[AB]){_NAME}\.weight|lora_embedding_(?P<embedding>[AB]){_NAME})"
)
_BIAS = re.compile(rf"(?P<module>.+)\.lora_B{_NAME}\.bias")
_MAGNITUDE = re.compile(rf"(?P<module>.+)\.lora_magnitude_vector{_NAME}(?:\.weight)?")
_TOKENS = re.compile(rf"(?P<module>.+)\.token_adapter\.trainable_tokens_delta{_NAME}")
# What the layers wrapped around a module keep of the module itself.
_BASE = re.compile(r"(?P<module>.+?)\.(?:token_adapter\.base_layer|base_layer|original_module)\.(?P<name>weight|bias)")
_SAVED = re.compile(r"(?P<module>.+?)\.modules_to_save(?:\.[^.]+)??\.(?P<name>weight|bias)")
# Left by training with VeLoRA (its buffers); nothing reads them afterwards.
_TRAINING_ONLY = re.compile(r".+\.lora_velora_[^.]+(?:\.[^.]+)?")


@dataclass
class Pair:
    """The names in the file of one delta's tensors: A (rank, in) and B (out, rank), and what goes with them."""

    a: str = ""
    b: str = ""
    is_embedding: bool = False
    magnitude: str = ""
    bias: str = ""


@dataclass
class Keys:
    """All tensors of a file: ``pairs`` and ``tokens`` by module, ``saved`` and ``base`` by parameter.

    ``saved`` are parameters trained in full, or plain ones whose role the configuration decides; ``base`` are copies of
    the base's own. ``problems`` says what is wrong with the file.
    """

    pairs: dict[str, Pair] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    saved: dict[str, str] = field(default_factory=dict)
    base: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def sort_keys(names: Iterable[str]) -> Keys:
    """Sort the tensor names of an adapter file."""
    keys = Keys()
    wrapped: dict[str, str] = {}
    for name in names:
        if not name.startswith(_PREFIX):
            keys.problems.append(f"{name} does not begin with {_PREFIX}")
            continue
        key = name.removeprefix(_PREFIX)
        if not _sort(keys, wrapped, key, name) and not _TRAINING_ONLY.fullmatch(key):
            _put(keys, keys.saved, key, name)
    for key, name in wrapped.items():
        keys.saved.setdefault(key, name)
    for module, pair in keys.pairs.items():
        if not pair.a or not pair.b:
            keys.problems.append(f"{module} has only one of lora_A and lora_B")
    return keys


def _sort(keys: Keys, wrapped: dict[str, str], key: str, name: str) -> bool:
    if match := _LORA.fullmatch(key):
        pair = keys.pairs.setdefault(match["module"], Pair())
        side = "a" if (match["linear"] or match["embedding"]) == "A" else "b"
        pair.is_embedding = match["linear"] is None
        if getattr(pair, side):
            keys.problems.append(f"{match['module']} has several adapters in one file")
        setattr(pair, side, name)
    elif match := _BIAS.fullmatch(key):
        keys.pairs.setdefault(match["module"], Pair()).bias = name
    elif match := _MAGNITUDE.fullmatch(key):
        keys.pairs.setdefault(match["module"], Pair()).magnitude = name
    elif match := _TOKENS.fullmatch(key):
        _put(keys, keys.tokens, match["module"], name)
    elif match := _BASE.fullmatch(key):
        _put(keys, keys.base, f"{match['module']}.{match['name']}", name)
    elif match := _SAVED.fullmatch(key):
        wrapped.setdefault(f"{match['module']}.{match['name']}", name)
    else:
        return False
    return True


def _put(keys: Keys, where: dict[str, str], key: str, name: str) -> None:
    if key in where:
        keys.problems.append(f"{key} has several adapters in one file")
    where[key] = name
