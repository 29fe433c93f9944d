"""The arguments of a weight's quantisation, as a ``quantization_config`` gives them."""

from typing import Any

from tuneserve.checkpoint.quantised.compressed_tensors._schemes import STRATEGIES, Args
from tuneserve.errors import CheckpointError


def parse_args(weights: Any) -> Args:
    """Return how weights are quantised, given a group's ``weights``.

    Raises:
        CheckpointError: they are malformed, or say what no format stores.
    """
    if not isinstance(weights, dict):
        raise malformed("weights")
    bits, kind = weights.get("num_bits", 8), weights.get("type", "int")
    size, sides = weights.get("group_size"), _sides(weights.get("block_structure"))
    strategy: Any = weights.get("strategy")
    symmetric = weights.get("symmetric", True)
    if size == -1 and type(size) is int:
        size, strategy = None, strategy or "channel"
    if strategy is None:
        strategy = "tensor" if size is None else "group"
    if type(bits) is not int or kind not in ("int", "float") or type(symmetric) is not bool:
        raise malformed("weights")
    if strategy not in STRATEGIES or strategy == "token" or weights.get("dynamic"):
        raise unreadable(f"quantises weights per {str(strategy)[:40]!r}, or dynamically")
    if (strategy in ("group", "tensor_group")) != (size is not None) or not (size is None or _is_size(size)):
        raise malformed("group_size")
    if (strategy == "block") != (sides is not None):
        raise malformed("block_structure")
    return Args(bits, kind, strategy, size, sides, symmetric)


def _sides(block: Any) -> tuple[int, int] | None:
    """Return the rows and columns of a block, given as ``[128, 128]`` or ``"128x128"``."""
    if block is None:
        return None
    if isinstance(block, str):
        block = [int(side) if side.isdecimal() and len(side) < 10 else 0 for side in block.split("x")]
    match block:
        case [rows, columns] if _is_size(rows) and _is_size(columns):
            return rows, columns
    raise malformed("block_structure")


def can_store(format_: str, args: Args) -> bool:
    """Return whether a format can store weights that are quantised so."""
    match format_:
        case "nvfp4-pack-quantized":
            return args == Args(4, "float", "tensor_group", 16)
        case "mxfp4-pack-quantized" | "mxfp8-quantized":
            return args == Args(4 if "4" in format_ else 8, "float", "group", 32)
        case "pack-quantized":
            return args.type == "int" and args.num_bits in (2, 4, 8) and args.strategy != "tensor_group"
        case _:
            kinds = {"int-quantized": ("int",), "float-quantized": ("float",)}.get(format_, ("int", "float"))
            bits = 1 <= args.num_bits <= 8 if args.type == "int" else args.num_bits == 8
            return args.type in kinds and bits and args.strategy != "tensor_group"


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def malformed(field: str) -> CheckpointError:
    """Return the error that a ``field`` of the configuration is not what it must be."""
    return CheckpointError(f"the quantization_config has a malformed {field}; download the model again.")


def unreadable(what: str) -> CheckpointError:
    """Return the error that the configuration asks for something that is not supported."""
    return CheckpointError(f"the quantization_config {what}, which cannot be read; pass the 16-bit model instead.")
