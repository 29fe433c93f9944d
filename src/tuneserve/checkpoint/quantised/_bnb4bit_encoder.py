"""Writes the tensors and the config of a checkpoint that bitsandbytes quantised to NF4."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tuneserve.checkpoint._codes import NF4
from tuneserve.checkpoint._tensor import DTYPE_BITS, TensorSpec
from tuneserve.checkpoint.quantised._dequantising import DTYPE_NAMES
from tuneserve.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_BLOCK = 64
_NESTED_BLOCK = 256
# The longest that Python writes a non-negative 32-bit float.
_OFFSET_CHARACTERS = 22


class Bnb4bitEncoder:
    """An :class:`~tuneserve.checkpoint.quantised.Encoder` into bitsandbytes' NF4 with double quantisation.

    Each weight is stored as the tensors that ``save_pretrained`` of Transformers writes, byte for byte, but for blanks
    at the end of the JSON in ``quant_state``: its length depends on the values, and sizes must be known before them.

    Args:
        weights: the names of the weights to quantise; others are left as they are.
        skipped: the modules that stay linear layers in 16 bits, where these are others than the output embedding,
            which Transformers skips by itself.
        transposed: those of ``weights`` that are ``[in, out]`` (Conv1D), which Transformers stores as ``[out, in]``.
    """

    def __init__(
        self, weights: Collection[str], *, skipped: Sequence[str] = (), transposed: Collection[str] = ()
    ) -> None:
        self._weights = frozenset(weights)
        self._skipped = list(skipped)
        self._transposed = frozenset(transposed)

    def stored(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """Return the specs of the packed values and of the tensors that bitsandbytes keeps beside them."""
        if spec.name not in self._weights:
            return (spec,)
        values = spec.nbytes * 8 // DTYPE_BITS[spec.dtype]
        blocks = -(-values // _BLOCK)
        return (
            TensorSpec(spec.name, "U8", ((values + 1) // 2, 1)),
            TensorSpec(f"{spec.name}.absmax", "U8", (blocks,)),
            TensorSpec(f"{spec.name}.nested_absmax", "F32", (-(-blocks // _NESTED_BLOCK),)),
            TensorSpec(f"{spec.name}.nested_quant_map", "F32", (256,)),
            TensorSpec(f"{spec.name}.quant_map", "F32", (16,)),
            TensorSpec(f"{spec.name}.quant_state.bitsandbytes__nf4", "U8", (len(self._state(spec, 0.0)),)),
        )

    def encode(self, spec: TensorSpec, tensor: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
        """Return the tensors of :meth:`stored`.

        Raises:
            CheckpointError: ``tensor`` has values that are not finite, or whose scales have no finite mean.
        """
        if spec.name not in self._weights:
            return (tensor.contiguous(),)
        import torch

        from tuneserve.checkpoint.quantised._codes4 import dynamic_code
        from tuneserve.checkpoint.quantised._nf4 import mean, quantise_blocks, quantise_scales

        values = (tensor.t() if spec.name in self._transposed else tensor).contiguous().flatten()
        packed, scales = quantise_blocks(values, _BLOCK)
        offset = mean(scales)
        if not torch.isfinite(offset):
            raise CheckpointError(
                f"{spec.name} has values that are too large or not finite; check the adapter and its base."
            )
        codes, nested_scales = quantise_scales(scales - offset, _NESTED_BLOCK)
        state = torch.frombuffer(bytearray(self._state(spec, offset.item())), dtype=torch.uint8)
        return packed[:, None], codes, nested_scales, dynamic_code(), torch.tensor(NF4), state

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Add the ``quantization_config`` that Transformers writes; activations are computed in the model's dtype."""
        return {
            **config,
            "quantization_config": {
                "_load_in_4bit": True,
                "_load_in_8bit": False,
                "bnb_4bit_compute_dtype": config.get("dtype") or config.get("torch_dtype") or "bfloat16",
                "bnb_4bit_quant_storage": "uint8",
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": True,
                "llm_int8_enable_fp32_cpu_offload": False,
                "llm_int8_has_fp16_weight": False,
                "llm_int8_skip_modules": self._skipped or None,
                "llm_int8_threshold": 6.0,
                "load_in_4bit": True,
                "load_in_8bit": False,
                "quant_method": "bitsandbytes",
            },
        }

    def _state(self, spec: TensorSpec, offset: float) -> bytes:
        shape = spec.shape[::-1] if spec.name in self._transposed else spec.shape
        state = {
            "quant_type": "nf4",
            "blocksize": _BLOCK,
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": shape,
            "nested_blocksize": _NESTED_BLOCK,
            "nested_dtype": "float32",
            "nested_offset": offset,
        }
        return (json.dumps(state) + " " * (_OFFSET_CHARACTERS - len(repr(offset)))).encode()
