"""Which tensors make up one quantised weight, each checked against the others by its header."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tuneserve.checkpoint._read import Checkpoint
from tuneserve.checkpoint._tensor import TensorHeader
from tuneserve.checkpoint.quantised.compressed_tensors._config import Group
from tuneserve.checkpoint.quantised.compressed_tensors._schemes import Args
from tuneserve.errors import CheckpointError

LEAVES = frozenset(
    ("weight_packed", "weight_scale", "weight_zero_point", "weight_global_scale", "weight_shape", "weight_g_idx")
)
_FLOATS = ("BF16", "F16", "F32")
_MX_FORMATS = ("mxfp4-pack-quantized", "mxfp8-quantized")


@dataclass(frozen=True)
class Layout:
    """A weight ``[rows, columns]`` and the names of the tensors that it is made from.

    ``codes`` are packed unless they are one per element; ``zero_point``, ``global_scale`` and ``group_index`` are None
    where there are none.
    """

    args: Args
    shape: tuple[int, int]
    packed: bool
    codes: str
    scale: str
    zero_point: str | None
    global_scale: str | None
    group_index: str | None


def layout(checkpoint: Checkpoint, module: str, parts: Mapping[str, TensorHeader], group: Group) -> Layout:
    """Return how the weight of ``module`` is stored in ``parts``, by the last part of their names.

    Raises:
        CheckpointError: a tensor is missing, too many, or disagrees in dtype or shape with the others or ``group``.
    """
    args = group.weights
    if args is None:
        raise _inconsistent(module, "is stored quantised, but its group quantises no weights")
    packed = "pack" in group.format
    codes = "weight_packed" if packed else "weight"
    required, optional = {codes, "weight_scale"}, set[str]()
    if group.format == "pack-quantized":
        required.add("weight_shape")
    if group.format == "nvfp4-pack-quantized":
        required.add("weight_global_scale")
    if not args.symmetric:
        required.add("weight_zero_point")
    elif not packed:
        optional.add("weight_zero_point")
    if args.type == "int" and args.strategy == "group":
        optional.add("weight_g_idx")
    if missing := required - parts.keys():
        raise _inconsistent(module, f"has no {min(missing)}")
    if extra := parts.keys() - required - optional:
        raise _inconsistent(module, f"has a {min(extra)}, which {group.format} has no use for")

    shape = _shape(checkpoint, module, parts, codes)
    if args.group_size is not None and shape[1] % args.group_size:
        raise _inconsistent(module, f"has {shape[1]} columns, which groups of {args.group_size} do not divide")
    expected = _expected(group.format, args, shape)
    for leaf, header in parts.items():
        dtypes, wanted = expected[leaf]
        fits = header.shape == wanted or (leaf != codes and math.prod(header.shape) == math.prod(wanted) == 1)
        if header.dtype not in dtypes or not fits:
            raise _inconsistent(
                module, f"has a {leaf} of {header.dtype} {list(header.shape)} instead of {dtypes[0]} {list(wanted)}"
            )
    names = {leaf: f"{module}.{leaf}" for leaf in parts}
    return Layout(
        args,
        shape,
        packed,
        names[codes],
        names["weight_scale"],
        names.get("weight_zero_point"),
        names.get("weight_global_scale"),
        names.get("weight_g_idx"),
    )


def _shape(checkpoint: Checkpoint, module: str, parts: Mapping[str, TensorHeader], codes: str) -> tuple[int, int]:
    """Return the shape of the weight; whether it agrees with the codes is not yet known."""
    if len(parts[codes].shape) != 2:
        raise _inconsistent(module, f"is stored quantised in {len(parts[codes].shape)} dimensions instead of 2")
    rows, columns = parts[codes].shape
    if codes == "weight_packed":
        columns *= 2
    if header := parts.get("weight_shape"):
        if header.dtype not in ("I64", "I32") or header.shape != (2,):
            raise _inconsistent(module, f"has a weight_shape of {header.dtype} {list(header.shape)} instead of I64 [2]")
        rows, columns = checkpoint.read(header.name).tolist()
    if not (0 < rows < 2**48 and 0 < columns < 2**48):
        raise _inconsistent(module, f"has the impossible shape [{rows}, {columns}]")
    return rows, columns


def _expected(
    format_: str, args: Args, shape: tuple[int, int]
) -> Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Return the dtypes and the shape that each tensor of a weight of ``shape`` may have."""
    rows, columns = shape
    bits = args.num_bits
    scales = args.scales(shape)
    scale_dtypes = {"nvfp4-pack-quantized": ("F8_E4M3",), **dict.fromkeys(_MX_FORMATS, ("U8", "F8_E8M0"))}
    plain = "F8_E4M3" if args.type == "float" else "I8"
    zero_point = ((plain,), scales)
    if format_ == "pack-quantized" and args.strategy in ("channel", "group"):
        zero_point = (("I32",), (-(-rows * bits // 32), scales[1]))
    return {
        "weight": ((plain,), shape),
        "weight_packed": (("I32",), (rows, -(-columns * bits // 32)))
        if format_ == "pack-quantized"
        else (("U8",), (rows, columns // 2)),
        "weight_scale": (scale_dtypes.get(format_, _FLOATS), scales),
        "weight_zero_point": zero_point,
        "weight_global_scale": (("F32",), (1,)),
        "weight_shape": (("I64", "I32"), (2,)),
        "weight_g_idx": (("I32", "I64"), (columns,)),
    }


def _inconsistent(module: str, problem: str) -> CheckpointError:
    return CheckpointError(f"{module} {problem}; download the model again or pass the 16-bit model instead.")
