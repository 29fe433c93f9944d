"""From the tensors of a checkpoint to those of a GGUF file: shapes before, data after."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuneserve.artifacts.gguf._metadata import Model
from tuneserve.checkpoint import TensorSpec
from tuneserve.errors import CheckpointError, SpecError
from tuneserve.spec import GgufPart, gguf_parts

if TYPE_CHECKING:
    import torch

_DENSE_BIASES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
# The biases that llama.cpp's code for the family adds.
_BIASES: Mapping[str, tuple[str, ...]] = {
    "llama": _DENSE_BIASES,
    "mistral": _DENSE_BIASES,
    "granite": _DENSE_BIASES,
    "qwen2": ("attn_q", "attn_k", "attn_v"),
    "qwen2_moe": ("attn_q", "attn_k", "attn_v"),
    "gpt2": ("attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down", "output_norm"),
    "gpt_oss": (
        *("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_inp"),
        *("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
    ),
}
_NO_OUTPUT = ("gemma", "gemma2")
_NEEDS_OUTPUT = ("qwen2_moe", "gpt_oss")


@dataclass(frozen=True)
class Plan:
    """``shapes`` of the GGUF's tensors, outermost dimension first, and the ``parts`` that each weight becomes."""

    shapes: Mapping[str, tuple[int, ...]]
    parts: Mapping[str, tuple[GgufPart, ...]]


def plan_parts(model: Model, specs: Mapping[str, TensorSpec]) -> Plan:
    """Plan the tensors of a GGUF file.

    Raises:
        CheckpointError: the weights are not those that the configuration describes.
        SpecError: a weight has no place in a GGUF file of the family.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    parts: dict[str, tuple[GgufPart, ...]] = {}
    experts: dict[str, set[int]] = {}
    for name, spec in specs.items():
        found = gguf_parts(model.family, name)
        # A tied model does not use the head that its checkpoint may have.
        parts[name] = () if model.tied and any(part.name == "output.weight" for part in found) else found
        for part in parts[name]:
            shape = _part_shape(model, part, spec)
            if part.expert is not None:
                experts.setdefault(part.name, set()).add(part.expert)
                shape = (model.shape.experts, *shape)
            if part.name in shapes and (part.expert is None or shapes[part.name] != shape):
                raise CheckpointError(
                    f"{name} is there twice or unlike its siblings; download or merge the model again."
                )
            shapes[part.name] = shape
    for name, numbers in experts.items():
        if numbers != set(range(model.shape.experts)):
            raise CheckpointError(
                f"not all {model.shape.experts} experts of {name} are there; download the model again."
            )
    _check(model, shapes)
    return Plan(shapes, parts)


def transform(model: Model, part: GgufPart, tensor: "torch.Tensor") -> "torch.Tensor":
    """Return the values of ``part`` of the weight ``tensor``, in its dtype or, where one is added, in float32."""
    if part.transposed:
        tensor = tensor.transpose(-1, -2)
    if part.rows != "all":
        axis = -2 if tensor.ndim == 3 else -1
        half = tensor.shape[axis] // 2
        halves = {"first half": tensor.narrow(axis, 0, half), "second half": tensor.narrow(axis, half, half)}
        start = 0 if part.rows == "even" else 1
        every_other = tensor[..., start::2, :] if axis == -2 else tensor[..., start::2]
        tensor = halves.get(part.rows, every_other)
    if part.heads is not None:
        heads = _heads(model, part)
        paired = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        tensor = paired.transpose(1, 2).reshape(tensor.shape)
    return tensor.float() + 1 if part.plus_one else tensor


def _heads(model: Model, part: GgufPart) -> int:
    return model.shape.heads if part.heads == "q" else model.shape.kv_heads


def _part_shape(model: Model, part: GgufPart, spec: TensorSpec) -> tuple[int, ...]:
    shape = list(spec.shape)
    if part.expert is not None and part.expert >= model.shape.experts:
        raise CheckpointError(f"{spec.name} is of an expert that config.json does not have; download the model again.")
    if (part.transposed and len(shape) < 2) or not 1 <= len(shape) <= 3 or 0 in shape:
        raise CheckpointError(f"{spec.name} has the shape {spec.shape}; download or merge the model again.")
    if part.transposed:
        shape[-2:] = shape[:-3:-1]
    if part.rows != "all":
        axis = -2 if len(shape) == 3 else -1
        if shape[axis] % 2:
            raise CheckpointError(
                f"{spec.name} has the shape {spec.shape}, which is not two halves; download it again."
            )
        shape[axis] //= 2
    if part.heads is not None and shape[0] != _heads(model, part) * model.head_dim:
        raise CheckpointError(
            f"{spec.name} has {shape[0]} rows where config.json has {_heads(model, part)} heads of {model.head_dim}; "
            "use the configuration that belongs to the weights."
        )
    return tuple(shape)


def _check(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
    blocks: dict[int, set[str]] = {number: set() for number in range(model.shape.layers)}
    for name in shapes:
        if name.startswith("blk."):
            _, number, stem = name.split(".", 2)
            blocks.setdefault(int(number), set()).add(stem)
        module, _, kind = name.rpartition(".")
        if kind == "bias" and module.rpartition(".")[2] not in _BIASES.get(model.family, ()):
            raise SpecError(
                f"llama.cpp's code for the {model.family} family does not add the bias {name}; "
                "export as merged_16bit and use an engine that reads it."
            )
    if len(blocks) != model.shape.layers or any(stems != blocks[0] for stems in blocks.values()):
        raise CheckpointError(
            f"the weights are not those of {model.shape.layers} equal layers; download the model again."
        )
    if (rows := shapes.get("token_embd.weight", (0,))[0]) != model.vocab_size or "output_norm.weight" not in shapes:
        raise CheckpointError(
            f"config.json has a vocabulary of {model.vocab_size} and the embedding has {rows} rows; "
            "use the configuration that belongs to the weights."
        )
    has_output = "output.weight" in shapes
    if has_output == model.tied or (has_output and model.family in _NO_OUTPUT):
        found = "has a head of its own" if has_output else "has no head"
        raise CheckpointError(
            f"the model {found}, which does not go with its configuration and family; set tie_word_embeddings right, "
            "or export as merged_16bit."
        )
    if model.tied and model.family in _NEEDS_OUTPUT:
        raise SpecError(f"llama.cpp does not tie the head of the {model.family} family; export as merged_16bit.")
