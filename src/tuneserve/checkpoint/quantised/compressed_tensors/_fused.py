"""Which weights engines join into one when they load a model, and which must therefore be quantised alike."""

from collections.abc import Iterable, Mapping

# vLLM's packed modules of all families; to treat weights alike that a family does not join costs nothing.
_FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkv", "in_proj_z"),
    ("in_proj_b", "in_proj_a"),
)
_GROUP = {leaf: group for group in _FUSED for leaf in group}


def partners(names: Iterable[str]) -> Mapping[str, frozenset[str]]:
    """Return for each weight of ``names`` all those that are joined with it, itself included."""
    groups: dict[tuple[str, tuple[str, ...]], set[str]] = {}
    keys = {}
    for name in names:
        module = name.removesuffix(".weight")
        parent, _, leaf = module.rpartition(".")
        keys[name] = (parent, _GROUP.get(leaf, (leaf,)))
        groups.setdefault(keys[name], set()).add(name)
    return {name: frozenset(groups[key]) for name, key in keys.items()}
