"""The ``quantization_config`` of a compressed-tensors checkpoint, checked before it is believed."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import regex

from tuneserve.checkpoint._pattern import compile_pattern
from tuneserve.checkpoint.quantised.compressed_tensors._args import can_store, malformed, parse_args, unreadable
from tuneserve.checkpoint.quantised.compressed_tensors._schemes import FORMATS, Args
from tuneserve.errors import CheckpointError

# For all patterns on all names; honest ones take microseconds each.
_MATCHING_SECONDS = 10.0


@dataclass(frozen=True)
class Group:
    """One of the ``config_groups``: which modules it means, and how their weights are quantised and stored.

    ``targets`` are module names, regular expressions after ``re:``, and classes such as ``Linear``; ``weights`` is None
    where only activations are quantised.
    """

    targets: tuple[str, ...]
    weights: Args | None
    format: str


class Config:
    """What a ``quantization_config`` says about weights.

    Raises:
        CheckpointError: it is malformed, or asks for a format or a transformation of weights that is not read.
    """

    def __init__(self, quantisation: Mapping[str, Any]) -> None:
        self._deadline = time.monotonic() + _MATCHING_SECONDS
        if _enabled(quantisation.get("sparsity_config")):
            raise unreadable("stores its weights sparsely")
        if quantisation.get("transform_config"):
            raise unreadable("rotates its weights (transform_config)")
        if quantisation.get("moe_sparsity_config"):
            raise unreadable("leaves experts out (moe_sparsity_config)")
        groups = quantisation.get("config_groups")
        if not isinstance(groups, dict):
            raise malformed("config_groups")
        parsed = [_group(group, quantisation.get("format")) for group in groups.values()]
        targets = {target: group for group in parsed for target in group.targets}
        ignored = _names(quantisation.get("ignore") or [], "ignore")
        self._names = {target: group for target, group in targets.items() if not _is_pattern(target)}
        # As in the library, the alphabet decides between patterns.
        self._patterns = [(_compile(target), targets[target]) for target in sorted(targets) if _is_pattern(target)]
        self._ignored_names = frozenset(ignored)
        self._ignored_patterns = [_compile(target) for target in ignored if _is_pattern(target)]
        self.quantises_activations_alone = bool(quantisation.get("kv_cache_scheme")) or any(
            group.weights is None for group in parsed
        )

    def group(self, module: str) -> Group:
        """Return the group that quantises ``module``: the one with its name, else with a pattern, else with a class.

        Names do not tell a module's class, so the group with a class takes what no other names.

        Raises:
            CheckpointError: no group or more than one could mean it, it is ignored, or a pattern takes too long.
        """
        if module in self._ignored_names or any(self._matches(pattern, module) for pattern in self._ignored_patterns):
            raise CheckpointError(
                f"{module} is in the ignore list of the quantization_config and yet stored quantised; "
                "download the model again."
            )
        if module in self._names:
            return self._names[module]
        for pattern, group in self._patterns:
            if self._matches(pattern, module):
                return group
        by_class = {id(group): group for target, group in self._names.items() if target.isidentifier()}
        if len(by_class) != 1:
            raise CheckpointError(
                f"{module} is stored quantised, but {len(by_class)} groups of the quantization_config could mean it; "
                "pass the 16-bit model instead."
            )
        return next(iter(by_class.values()))

    def _matches(self, pattern: "regex.Pattern[str]", module: str) -> bool:
        left = self._deadline - time.monotonic()
        try:
            if left > 0:
                return pattern.match(module, timeout=left) is not None
        except TimeoutError:
            pass
        raise CheckpointError(
            f"the patterns of the quantization_config, such as {pattern.pattern[:100]!r}, take too long to match; "
            "write the module names out instead."
        )


def _is_pattern(target: str) -> bool:
    return target.startswith("re:")


def _compile(target: str) -> "regex.Pattern[str]":
    pattern = target.removeprefix("re:")
    try:
        return compile_pattern(pattern)
    except ValueError as error:
        raise malformed(f"pattern {pattern[:100]!r} ({error})") from None


def _enabled(sparsity: Any) -> bool:
    return bool(sparsity) and not (isinstance(sparsity, dict) and sparsity.get("format") == "dense")


def _group(group: Any, default: Any) -> Group:
    if not isinstance(group, dict):
        raise malformed("config_groups")
    targets, format_ = _names(group.get("targets"), "targets"), group.get("format") or default
    if group.get("weights") is None:
        return Group(targets, None, str(format_)[:40])
    args = parse_args(group["weights"])
    if format_ not in FORMATS:
        raise unreadable(f"has the format {str(format_)[:40]!r}")
    if not can_store(format_, args):
        raise unreadable(f"has the format {format_!r} with {args.num_bits}-bit {args.type} weights per {args.strategy}")
    return Group(targets, args, format_)


def _names(names: Any, field: str) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) and len(name) <= 1000 for name in names):
        raise malformed(field)
    return tuple(names)
