"""How tensors are quantised in compressed-tensors, and the schemes that need no calibration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Strategy = Literal["tensor", "channel", "group", "tensor_group", "block", "token"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)

FORMATS = (
    "int-quantized", "float-quantized", "naive-quantized", "mxfp8-quantized",
    "pack-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Args:
    """The arguments of one quantisation, named as in the ``quantization_config``."""

    num_bits: int
    type: Literal["int", "float"]
    strategy: Strategy
    group_size: int | None = None
    block_structure: tuple[int, int] | None = None
    symmetric: bool = True
    dynamic: bool = False
    scale_dtype: str | None = None

    def block(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return how many rows and columns of a weight of ``shape`` share one scale."""
        match self.strategy:
            case "channel":
                return 1, shape[1]
            case "group" | "tensor_group":
                assert self.group_size is not None
                return 1, self.group_size
            case "block":
                assert self.block_structure is not None
                return self.block_structure
            case _:
                return shape

    def scales(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the shape of the scales of a weight of ``shape``."""
        rows, columns = self.block(shape)
        return -(-shape[0] // rows), -(-shape[1] // columns)

    def to_json(self) -> dict[str, Any]:
        """Return what ``QuantizationArgs.model_dump`` of the library gives."""
        optional = {
            "block_structure": list(self.block_structure) if self.block_structure else None,
            "scale_dtype": self.scale_dtype,
        }
        return {
            "num_bits": self.num_bits,
            "type": self.type,
            "symmetric": self.symmetric,
            "group_size": self.group_size,
            "strategy": self.strategy,
            "dynamic": self.dynamic,
            **{name: value for name, value in optional.items() if value is not None},
        }


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the weights of a model are stored and quantised, and how an engine is to quantise what goes into them."""

    format: str
    weights: Args
    inputs: Args | None = None


_MX: dict[str, Any] = {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}

SCHEMES: Mapping[str, Scheme] = {
    "fp8": Scheme("float-quantized", Args(8, "float", "channel"), Args(8, "float", "token", dynamic=True)),
    "fp8_block": Scheme(
        "float-quantized",
        Args(8, "float", "block", block_structure=(128, 128)),
        Args(8, "float", "group", group_size=128, dynamic=True),
    ),
    "int8": Scheme("int-quantized", Args(8, "int", "channel"), Args(8, "int", "token", dynamic=True)),
    "w8a16": Scheme("pack-quantized", Args(8, "int", "group", group_size=128)),
    "int4": Scheme("pack-quantized", Args(4, "int", "group", group_size=128)),
    "mxfp8": Scheme("mxfp8-quantized", Args(8, "float", **_MX), Args(8, "float", dynamic=True, **_MX)),
    "mxfp4": Scheme("mxfp4-pack-quantized", Args(4, "float", **_MX), Args(4, "float", dynamic=True, **_MX)),
    "mxfp4a16": Scheme("mxfp4-pack-quantized", Args(4, "float", **_MX)),
    "nvfp4a16": Scheme(
        "nvfp4-pack-quantized", Args(4, "float", "tensor_group", group_size=16, scale_dtype="torch.float8_e4m3fn")
    ),
}
"""compressed-tensors' presets FP8_DYNAMIC, FP8_BLOCK, W8A8, W8A16, W4A16, MXFP8, MXFP4, MXFP4A16 and NVFP4A16."""
