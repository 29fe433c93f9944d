"""A GGUF file of the Llama family as a Hugging Face directory in bfloat16.

GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Tensor names and the order of the rows of q and k
follow llama.cpp's converter, which interleaves each head's two rotary halves.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tuneserve.checkpoint import SafetensorsWriter, TensorSpec, write_json
from tuneserve.errors import SourceError
from tuneserve.sources._gguf_tokenizer import write_tokenizer_files

_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write_hugging_face_files(gguf: Path, directory: Path) -> None:
    """Write config, tokenizer, chat template and dequantised weights of ``gguf`` into ``directory``.

    Raises:
        SourceError: the file's architecture is not Llama.
    """
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    if metadata.get("general.architecture") != "llama":
        raise SourceError(f"{gguf} is not of the Llama family; convert it with its own project's tools.")

    config = _config(metadata)
    write_json(directory / "config.json", config)
    token_ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(directory / "generation_config.json", token_ids)
    write_tokenizer_files(metadata, directory)

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    names = list(_names(config["num_hidden_layers"]))
    # GGUF stores dimensions innermost first.
    specs = [TensorSpec(name, "BF16", tuple(int(n) for n in reversed(tensors[key].shape))) for key, name in names]
    with SafetensorsWriter(directory / "model.safetensors", specs) as writer:
        for key, name in names:
            writer.write(name, _bfloat16(_dequantised(tensors[key], key, config)).data)


def _config(metadata: dict[str, Any]) -> dict[str, Any]:
    heads = metadata["llama.attention.head_count"]
    hidden = metadata["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": hidden // heads,
        "vocab_size": metadata["llama.vocab_size"],
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": _shortest(metadata["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": _shortest(metadata["llama.rope.freq_base"]),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "dtype": "bfloat16",
    }


def _names(layers: int) -> Iterator[tuple[str, str]]:
    yield "token_embd.weight", "model.embed_tokens.weight"
    for layer in range(layers):
        for key, name in _LAYER_TENSORS.items():
            yield f"blk.{layer}.{key}.weight", f"model.layers.{layer}.{name}.weight"
    yield "output_norm.weight", "model.norm.weight"


def _dequantised(tensor: Any, key: str, config: dict[str, Any]) -> npt.NDArray[np.float32]:
    from gguf import dequantize

    values: npt.NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for part, count in heads.items():
        if f".{part}." in key:
            rows, columns = values.shape
            pairs = values.reshape(count, rows // count // 2, 2, columns)
            return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, columns)
    return values


def _bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to nearest, ties to even, as bit patterns; the values are finite."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded: npt.NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def _shortest(value: float) -> float:
    """Undo the widening of a float32: 9.999999747378752e-06 was written as 1e-05."""
    return float(str(np.float32(value)))
