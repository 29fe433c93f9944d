"""Encoders of 16-bit weights into compressed-tensors."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tuneserve.checkpoint._tensor import TensorSpec
from tuneserve.checkpoint.quantised.compressed_tensors._fused import partners
from tuneserve.checkpoint.quantised.compressed_tensors._schemes import SCHEMES, Scheme
from tuneserve.errors import CheckpointError

if TYPE_CHECKING:
    import torch

# The release whose layout is written.
_VERSION = "0.20.0"


class CompressedTensorsEncoder:
    """Stores linear weights as a scheme says, by rounding to the nearest.

    ``linear`` are the weights to quantise (2-D, in BF16, F16 or F32). ``ignore`` names the model's other modules of
    class ``Linear``, which the configuration must list: the output head, also where it is tied, and routers.

    A weight whose columns (for blocks, also rows) are no multiple of the scheme's group size stays as it is and is
    listed there too, with those that engines join with it (``q_proj``, ``k_proj`` and ``v_proj``), so that vLLM loads
    what results. llm-compressor refuses such weights of groups and pads such blocks, which vLLM refuses where it joins
    them.

    Scales are those of the library's min-max observer, rounded to the weight's dtype; all arithmetic is in float32.
    NVFP4's second scale must be the same in weights that engines join, so these are shown to :meth:`observe` first.

    Raises:
        CheckpointError: nothing would be quantised; or, from ``encode``, a weight holds values that are not finite.
    """

    def __init__(self, scheme: Scheme, linear: Sequence[TensorSpec], ignore: Sequence[str]) -> None:
        self._scheme = scheme
        self._partners = partners(spec.name for spec in linear)
        self._largest: dict[str, float] = {}
        unfit = {spec.name for spec in linear if not _fits(scheme, spec)}
        self._weights = frozenset(name for name, joined in self._partners.items() if not joined & unfit)
        left = [spec.name.removesuffix(".weight") for spec in linear if spec.name not in self._weights]
        self._ignore = list(dict.fromkeys([*ignore, *left]))
        if not self._weights:
            raise CheckpointError(
                "no linear weight of the model divides into the groups of this method, so that none would be "
                "quantised; choose fp8 or int8, which need no groups."
            )

    def stored(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """Return the codes, the scales, and the shape or the global scale where the format has one."""
        if spec.name not in self._weights:
            return (spec,)
        args = self._scheme.weights
        rows, columns = spec.shape
        packed = columns * args.num_bits // 8
        module = spec.name.removesuffix(".weight")

        def part(leaf: str, dtype: str, *shape: int) -> TensorSpec:
            return TensorSpec(f"{module}.{leaf}", dtype, shape)

        def scales(dtype: str) -> TensorSpec:
            return part("weight_scale", dtype, *args.scales((rows, columns)))

        match self._scheme.format:
            case "pack-quantized":
                codes = part("weight_packed", "I32", rows, packed // 4)
                return codes, scales(spec.dtype), part("weight_shape", "I64", 2)
            case "nvfp4-pack-quantized":
                codes = part("weight_packed", "U8", rows, packed)
                return codes, scales("F8_E4M3"), part("weight_global_scale", "F32", 1)
            case "mxfp4-pack-quantized":
                return part("weight_packed", "U8", rows, packed), scales("U8")
            case "mxfp8-quantized":
                return part("weight", "F8_E4M3", rows, columns), scales("U8")
            case _:
                return part("weight", "F8_E4M3" if args.type == "float" else "I8", rows, columns), scales(spec.dtype)

    def encode(self, spec: TensorSpec, tensor: "torch.Tensor") -> tuple["torch.Tensor", ...]:
        """Return the tensors that :meth:`stored` names; ``tensor`` may be in float32 before it is rounded."""
        if spec.name not in self._weights:
            return (tensor.contiguous(),)
        import torch

        from tuneserve.checkpoint.quantised.compressed_tensors._quantise import quantise

        dtypes = {
            "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
            "F8_E4M3": torch.float8_e4m3fn, "I8": torch.int8, "U8": torch.uint8, "I32": torch.int32,
        }  # fmt: skip
        codes, scales = (torch.empty(part.shape, dtype=dtypes[part.dtype]) for part in self.stored(spec)[:2])
        raw = codes.view(torch.uint8) if codes.dtype == torch.int32 else codes
        args = self._scheme.weights
        global_scale = self._global_scale(spec.name, tensor) if args.strategy == "tensor_group" else None
        quantise(spec.name, tensor, args, raw, scales, global_scale)
        if self._scheme.format == "pack-quantized":
            return codes, scales, torch.tensor(spec.shape)
        return (codes, scales) if global_scale is None else (codes, scales, global_scale)

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``config`` with the ``quantization_config`` that llm-compressor writes for the scheme."""
        group = {
            "targets": ["Linear"],
            "weights": self._scheme.weights.to_json(),
            "input_activations": self._scheme.inputs.to_json() if self._scheme.inputs else None,
            "output_activations": None,
            "format": self._scheme.format,
        }
        quantisation = {
            "quant_method": "compressed-tensors",
            "version": _VERSION,
            "format": self._scheme.format,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": self._ignore,
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
            "moe_sparsity_config": None,
            "sparsity_config": {},
            "transform_config": {},
        }
        return {**config, "quantization_config": quantisation}

    @property
    def observed(self) -> tuple[str, ...]:
        """The weights that engines join with others, where the scheme has a scale that these must share."""
        if self._scheme.weights.strategy != "tensor_group":
            return ()
        return tuple(name for name, joined in self._partners.items() if name in self._weights and len(joined) > 1)

    def observe(self, name: str, tensor: "torch.Tensor") -> None:
        """Take the largest magnitude of the weight ``name``.

        Raises:
            CheckpointError: it holds values that are not finite.
        """
        from tuneserve.checkpoint.quantised.compressed_tensors._quantise import largest_magnitude

        self._largest[name] = largest_magnitude(name, tensor)

    def _global_scale(self, name: str, tensor: "torch.Tensor") -> "torch.Tensor":
        from tuneserve.checkpoint.quantised.compressed_tensors._quantise import global_scale, largest_magnitude

        joined = self._partners[name]
        if len(joined) == 1:
            return global_scale(largest_magnitude(name, tensor))
        assert joined <= self._largest.keys(), f"{name} is encoded before all of {sorted(joined)} were observed"
        return global_scale(max(self._largest[partner] for partner in joined))


def _fits(scheme: Scheme, spec: TensorSpec) -> bool:
    rows, columns = spec.shape
    if not rows or not columns:
        return False
    height, width = scheme.weights.block((rows, columns))
    return rows % height == 0 and columns % width == 0


CT_ENCODERS: Mapping[str, Callable[[Sequence[TensorSpec], Sequence[str]], CompressedTensorsEncoder]] = {
    method: partial(CompressedTensorsEncoder, scheme) for method, scheme in SCHEMES.items()
}
"""For each method, what makes its encoder of the linear weights and the names of the other linear modules."""
