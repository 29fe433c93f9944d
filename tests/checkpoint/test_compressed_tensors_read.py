"""What is read is, bit for bit, what the compressed-tensors library itself would decompress."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from safetensors.torch import save_file

from tuneserve.checkpoint import TensorSpec
from tuneserve.checkpoint.quantised import open_weights

State = dict[str, torch.Tensor]
INT4 = {"num_bits": 4, "type": "int"}
INT8 = {"num_bits": 8, "type": "int"}
FP8 = {"num_bits": 8, "type": "float"}
MX = {"type": "float", "strategy": "group", "group_size": 32, "scale_dtype": torch.uint8}
TOKEN = {"strategy": "token", "dynamic": True}
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "int8 per tensor": ("int-quantized", {**INT8, "strategy": "tensor"}, (6, 10)),
    "int8 per channel": ("int-quantized", {**INT8, "strategy": "channel"}, (6, 10)),
    "int8 per channel asymmetric": ("int-quantized", {**INT8, "strategy": "channel", "symmetric": False}, (6, 10)),
    "int8 per group": ("naive-quantized", {**INT8, "group_size": 4}, (6, 8)),
    "int4 in bytes": ("naive-quantized", {**INT4, "strategy": "channel"}, (6, 10)),
    "int4 per group": ("pack-quantized", {**INT4, "group_size": 8}, (6, 24)),
    "int4 per group asymmetric": ("pack-quantized", {**INT4, "group_size": 8, "symmetric": False}, (13, 24)),
    "int4 per channel": ("pack-quantized", {**INT4, "strategy": "channel"}, (6, 13)),
    "int4 per channel asymmetric": ("pack-quantized", {**INT4, "strategy": "channel", "symmetric": False}, (13, 13)),
    "int4 per tensor asymmetric": ("pack-quantized", {**INT4, "strategy": "tensor", "symmetric": False}, (6, 13)),
    "int4 all columns at once": ("pack-quantized", {**INT4, "group_size": -1}, (6, 13)),
    "int8 packed": ("pack-quantized", {**INT8, "group_size": 8}, (6, 24)),
    "int8 packed asymmetric": ("pack-quantized", {**INT8, "group_size": 8, "symmetric": False}, (5, 24)),
    "int2 packed": ("pack-quantized", {"num_bits": 2, "type": "int", "group_size": 8}, (6, 24)),
    "fp8 per tensor": ("float-quantized", {**FP8, "strategy": "tensor"}, (6, 10)),
    "fp8 per channel": ("float-quantized", {**FP8, "strategy": "channel"}, (6, 10)),
    "fp8 per block": ("float-quantized", {**FP8, "strategy": "block", "block_structure": [4, 8]}, (8, 16)),
    "fp8 per ragged block": ("float-quantized", {**FP8, "strategy": "block", "block_structure": [4, 8]}, (7, 18)),
    "fp8 named naive": ("naive-quantized", {**FP8, "strategy": "channel"}, (6, 10)),
    "mxfp8": ("mxfp8-quantized", {"num_bits": 8, **MX}, (6, 64)),
    "mxfp4": ("mxfp4-pack-quantized", {"num_bits": 4, **MX}, (6, 64)),
    "nvfp4": (
        "nvfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
         "scale_dtype": torch.float8_e4m3fn},
        (6, 64),
    ),
}  # fmt: skip


def _scheme(format_: str, weights: dict[str, Any], **more: Any) -> QuantizationScheme:
    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights), format=format_, **more)


def _compress(scheme: QuantizationScheme, weight: torch.Tensor) -> State:
    """Let the library quantise ``weight`` (float32 ``[rows, columns]``), its scales in bfloat16."""
    args = scheme.weights
    rows, columns = weight.shape
    if args.strategy == "block":
        height, width = args.block_structure
        padded = torch.nn.functional.pad(weight, (0, -columns % width, 0, -rows % height))
        blocks = padded.view(-(-rows // height), height, -(-columns // width), width).transpose(1, 2).flatten(2)
    elif args.strategy == "tensor":
        blocks = weight.reshape(1, -1)
    else:
        blocks = weight.view(rows, -1, args.group_size if (args.group_size or -1) > 0 else columns)
    state = {"weight": weight}
    if args.strategy == "tensor_group":
        state["weight_global_scale"] = generate_gparam(weight.min(), weight.max())
    scale, zero_point = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, state.get("weight_global_scale"))
    state["weight_scale"] = scale if args.scale_dtype else scale.bfloat16()
    if not args.symmetric:
        state["weight_zero_point"] = zero_point
    return dict(BaseCompressor.get_value_from_registry(scheme.format).compress(state, scheme))


def _save(directory: Path, scheme: QuantizationScheme, state: State, dtype: str = "bfloat16", **more: Any) -> Path:
    """Write a checkpoint with one quantised module ``a.b`` and the norm beside it."""
    directory.mkdir(exist_ok=True)
    tensors = {f"a.b.{name}": tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors | {"a.norm.weight": torch.arange(4.0)}, directory / "model.safetensors")
    quantisation = {
        "quant_method": "compressed-tensors",
        "format": scheme.format,
        "config_groups": {"group_0": scheme.model_dump()},
        "ignore": ["lm_head"],
        **more,
    }
    config = {"dtype": dtype, "quantization_config": quantisation}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def _open(directory: Path) -> Any:
    return open_weights(directory, json.loads((directory / "config.json").read_text()))


def _weight(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator) * 2.0 ** torch.randint(-6, 3, (shape[0], 1), generator=generator)


@pytest.mark.parametrize("case", CASES)
def test_every_bit_is_the_library_s(case: str, tmp_path: Path) -> None:
    format_, weights, shape = CASES[case]
    scheme = _scheme(format_, weights)
    state = _compress(scheme, _weight(*shape))
    reader = _open(_save(tmp_path / "model", scheme, state))
    assert dict(reader.tensors) == {
        "a.b.weight": TensorSpec("a.b.weight", "BF16", shape),
        "a.norm.weight": TensorSpec("a.norm.weight", "F32", (4,)),
    }
    theirs = BaseCompressor.get_value_from_registry(format_).decompress(state, scheme)["weight"]
    ours = reader.read("a.b.weight")
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert torch.equal(ours.view(torch.int16), theirs.view(torch.int16))
    assert reader.read("a.norm.weight").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("case", CASES)
def test_slabs_of_rows_join_without_a_seam(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneserve.checkpoint.quantised.compressed_tensors import _quantise

    format_, weights, shape = CASES[case]
    scheme = _scheme(format_, weights)
    reader = _open(_save(tmp_path / "model", scheme, _compress(scheme, _weight(*shape))))
    whole = reader.read("a.b.weight")
    monkeypatch.setattr(_quantise, "_SLAB", 3 * shape[1])
    assert torch.equal(reader.read("a.b.weight"), whole)


def test_the_result_is_rounded_once_to_the_dtype_of_the_configuration(tmp_path: Path) -> None:
    scheme = _scheme("int-quantized", {**INT8, "strategy": "channel"})
    state = _compress(scheme, _weight(6, 10))
    reader = _open(_save(tmp_path / "model", scheme, state, dtype="float16"))
    exact = state["weight"].double() * state["weight_scale"].double()
    assert reader.tensors["a.b.weight"].dtype == "F16"
    assert torch.equal(reader.read("a.b.weight"), exact.half())


def test_activation_order_gives_each_column_the_group_it_names(tmp_path: Path) -> None:
    """Columns sorted by their group are what the library (which has dropped this order) reads without an index."""
    scheme = _scheme("pack-quantized", {**INT4, "group_size": 8, "symmetric": False})
    weight = _weight(13, 24)
    index = torch.arange(24) // 8
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    sorted_state = _compress(scheme, weight)
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    expected = torch.empty(13, 24, dtype=torch.bfloat16)
    expected[:, order] = compressor.decompress(sorted_state, scheme)["weight"]

    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

    codes = unpack_from_int32(sorted_state["weight_packed"], 4, torch.Size((13, 24)))
    shuffled, group_index = torch.empty_like(codes), torch.empty_like(index)
    shuffled[:, order], group_index[order] = codes, index
    state = {**sorted_state, "weight_packed": pack_to_int32(shuffled, 4), "weight_g_idx": group_index.int()}
    reader = _open(_save(tmp_path / "ordered", scheme, state))
    assert torch.equal(reader.read("a.b.weight"), expected)

    unused = {**sorted_state, "weight_g_idx": torch.full((24,), -1, dtype=torch.int32)}
    reader = _open(_save(tmp_path / "unordered", scheme, unused))
    assert torch.equal(reader.read("a.b.weight")[:, order.argsort()], expected)


def test_each_module_is_read_as_its_own_group_says(tmp_path: Path) -> None:
    """Names come before patterns and patterns before classes, as in the library's matching."""
    schemes = {
        "a.o_proj": _scheme("pack-quantized", {**INT4, "group_size": 8}),
        "a.up_proj": _scheme("float-quantized", {**FP8, "strategy": "channel"}),
        "a.down_proj": _scheme("int-quantized", {**INT8, "strategy": "channel"}),
    }
    targets = {"a.o_proj": ["a.o_proj"], "a.up_proj": ["re:.*(up|o)_proj"], "a.down_proj": ["Linear"]}
    states = {name: _compress(scheme, _weight(8, 16)) for name, scheme in schemes.items()}
    save_file(
        {f"{name}.{leaf}": tensor for name, state in states.items() for leaf, tensor in state.items()},
        tmp_path / "model.safetensors",
    )
    groups = {name: {**scheme.model_dump(), "targets": targets[name]} for name, scheme in reversed(schemes.items())}
    quantisation = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}
    reader = open_weights(tmp_path, {"torch_dtype": "bfloat16", "quantization_config": quantisation})
    for name, scheme in schemes.items():
        theirs = BaseCompressor.get_value_from_registry(scheme.format).decompress(states[name], scheme)["weight"]
        assert torch.equal(reader.read(f"{name}.weight"), theirs), name


def test_what_quantises_activations_and_the_cache_is_left_out(tmp_path: Path) -> None:
    scheme = _scheme("float-quantized", {**FP8, "strategy": "tensor"})
    state = _compress(scheme, _weight(6, 10)) | {
        "input_scale": torch.ones(1),
        "bias": torch.ones(6),
        "k_scale": torch.ones(1),
    }
    cache = {"num_bits": 8, "type": "float", "strategy": "tensor"}
    reader = _open(_save(tmp_path / "model", scheme, state, kv_cache_scheme=cache))
    assert set(reader.tensors) == {"a.b.weight", "a.b.bias", "a.norm.weight"}
