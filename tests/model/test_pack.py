"""Protects: what a checkpoint stores in few bits is multiplied as the library of its format dequantises it.

Activations are integers of which each group has one of 127, so they are not rounded, and what is left is the order of a
sum in float32.
"""

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import gguf
import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

from tuneserve.checkpoint import CodeReader, StoredCodes, open_gguf, read_codes
from tuneserve.checkpoint.quantised import open_weights
from tuneserve.errors import CheckpointError
from tuneserve.kernels import cpu
from tuneserve.kernels.cpu import Kind
from tuneserve.model._pack import Packed, pack_codes, pack_dense
from tuneserve.model._pages import Pages

from .test_compiled import OLDER

# Neither whole panels nor a single one.
ROWS, COLUMNS, PANELS = 72, 512, 3
Q4_1 = gguf.GGMLQuantizationType.Q4_1
Case = tuple[StoredCodes, torch.Tensor]
FOUR_BITS = {"num_bits": 4, "type": "int"}
EIGHT_BITS = {"num_bits": 8, "type": "int"}
FP8 = {"num_bits": 8, "type": "float"}
COMPRESSED: dict[str, tuple[str, dict[str, Any]]] = {
    "int8 per channel": ("int-quantized", {**EIGHT_BITS, "strategy": "channel"}),
    "int8 per tensor": ("int-quantized", {**EIGHT_BITS, "strategy": "tensor"}),
    "int8 per channel asymmetric": ("int-quantized", {**EIGHT_BITS, "strategy": "channel", "symmetric": False}),
    "int8 packed": ("pack-quantized", {**EIGHT_BITS, "group_size": 128}),
    "int4 in groups of 128": ("pack-quantized", {**FOUR_BITS, "group_size": 128}),
    "int4 in groups of 32 asymmetric": ("pack-quantized", {**FOUR_BITS, "group_size": 32, "symmetric": False}),
    "int4 per channel asymmetric": ("pack-quantized", {**FOUR_BITS, "strategy": "channel", "symmetric": False}),
    "int4 in bytes": ("naive-quantized", {**FOUR_BITS, "strategy": "channel"}),
    "fp8 per tensor": ("float-quantized", {**FP8, "strategy": "tensor"}),
    "fp8 per channel": ("float-quantized", {**FP8, "strategy": "channel"}),
    "fp8 per block": ("float-quantized", {**FP8, "strategy": "block", "block_structure": [24, 128]}),
    "mxfp4": (
        "mxfp4-pack-quantized",
        {**FP8, "num_bits": 4, "strategy": "group", "group_size": 32, "scale_dtype": torch.uint8},
    ),
}
# Bytes of a block that are float16 factors.
GGUF: dict[str, slice] = {
    "Q8_0": slice(0, 2), "Q4_0": slice(0, 2), "Q4_1": slice(0, 4), "Q5_0": slice(0, 2), "Q5_1": slice(0, 4),
    "Q4_K": slice(0, 4), "Q5_K": slice(0, 4), "Q6_K": slice(208, 210),
}  # fmt: skip
BITSANDBYTES = [f"{kind} {size}{nested}" for kind in ("nf4", "fp4") for size in (32, 128) for nested in ("", " nested")]


def random_weight() -> torch.Tensor:
    return (
        torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(3)) * torch.linspace(0.1, 2, ROWS)[:, None]
    )


def from_reader(directory: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], name: str) -> StoredCodes:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    reader = open_weights(directory, config)
    assert isinstance(reader, CodeReader) and reader.storage(name) is not None
    codes = reader.codes(name)
    assert codes is not None
    return codes


def from_gguf(directory: Path, kind: str) -> Case:
    raw_kind = gguf.GGMLQuantizationType[kind]
    elements, nbytes = gguf.GGML_QUANT_SIZES[raw_kind]
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 256, (ROWS, COLUMNS // elements, nbytes), dtype=np.uint8)
    factors = generator.uniform(-0.1, 0.1, (*blocks.shape[:2], nbytes)).astype(np.float16).view(np.uint8)
    blocks[..., GGUF[kind]] = factors[..., : GGUF[kind].stop - GGUF[kind].start]
    raw = blocks.reshape(ROWS, -1)
    writer = gguf.GGUFWriter(directory / "model.gguf", "llama")
    writer.add_tensor("weight", raw, raw_dtype=raw_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    codes = read_codes(open_gguf(directory / "model.gguf").tensors["weight"])
    assert codes is not None
    return codes, torch.from_numpy(gguf.quants.dequantize(raw, raw_kind).astype(np.float32))


def from_bitsandbytes(directory: Path, name: str) -> Case:
    config = {"dtype": "float32", "quantization_config": {"quant_method": "bitsandbytes"}}
    weight = random_weight()
    if name == "int8":
        values, scales, _ = bnb.int8_vectorwise_quant(weight.half())
        tensors = {"m.weight": values, "m.SCB": scales}
        return from_reader(directory, tensors, config, "m.weight"), bnb.int8_vectorwise_dequant(values, scales)
    kind, size, *nested = name.split()
    packed, state = bnb.quantize_4bit(weight, quant_type=kind, blocksize=int(size), compress_statistics=bool(nested))
    parts = {f"w.{key}": tensor.clone() for key, tensor in state.as_dict(packed=True).items()}
    return from_reader(directory, {"w": packed, **parts}, config, "w"), bnb.dequantize_4bit(packed, state)


def from_compressed(directory: Path, name: str) -> Case:
    format_, options = COMPRESSED[name]
    args, weight = QuantizationArgs(**options), random_weight()
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=format_)
    if args.strategy == "block":
        height, width = args.block_structure
        blocks = weight.view(ROWS // height, height, COLUMNS // width, width).transpose(1, 2).flatten(2)
    elif args.strategy == "tensor":
        blocks = weight.reshape(1, -1)
    else:
        blocks = weight.view(ROWS, -1, args.group_size if (args.group_size or -1) > 0 else COLUMNS)
    scale, zero_point = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, None)
    state = {"weight": weight, "weight_scale": scale}
    if not args.symmetric:
        state["weight_zero_point"] = zero_point
    compressor = BaseCompressor.get_value_from_registry(format_)
    stored = dict(compressor.compress(state, scheme))
    expected = compressor.decompress({key: tensor.clone() for key, tensor in stored.items()}, scheme)["weight"]
    config = {
        "dtype": "float32",
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": format_,
            "config_groups": {"group_0": json.loads(scheme.model_dump_json())},
        },
    }
    codes = from_reader(directory, {f"m.{key}": one for key, one in stored.items()}, config, "m.weight")
    return codes, expected.float()


CASES: dict[str, tuple[Callable[[Path, str], Case], str]] = {
    **{f"gguf {name}": (from_gguf, name) for name in GGUF},
    **{f"bitsandbytes {name}": (from_bitsandbytes, name) for name in (*BITSANDBYTES, "int8")},
    **{f"compressed-tensors {name}": (from_compressed, name) for name in COMPRESSED},
}


def product(library: cpu.Library, packed: Packed, x: torch.Tensor) -> torch.Tensor:
    """Return x (rows, columns) times the weight, (rows, weight's rows), as the step's head computes it."""
    linear = cpu.Linear(
        kind=packed.kind, rows=packed.rows, cols=packed.cols, panels=packed.panels.data_ptr(),
        kinds=None if packed.kinds is None else packed.kinds.data_ptr(),
        offsets=None if packed.offsets is None else packed.offsets.data_ptr(),
    )  # fmt: skip
    model = cpu.Model(hidden=packed.cols, vocab=packed.rows, logit_scale=1.0, head=linear)
    result = torch.full((len(x), packed.rows), torch.nan)
    session = library.open(1)
    assert session is not None
    try:
        assert library.head(session, ctypes.byref(model), x.data_ptr(), len(x), result.data_ptr()) == 0
    finally:
        library.close(session)
    return result


def activations(count: int) -> torch.Tensor:
    x = torch.randint(-127, 128, (count, COLUMNS), generator=torch.Generator().manual_seed(1)).float()
    x[:, ::32] = 127.0
    return x


def assert_exact(found: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    exact, most = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
    assert ((found - exact).abs() <= 1e-6 * most).all()


@pytest.mark.parametrize("case", CASES)
def test_products_are_those_of_what_the_library_dequantises(case: str, tmp_path: Path) -> None:
    make, name = CASES[case]
    codes, weight = make(tmp_path, name)
    assert weight.shape == (ROWS, COLUMNS) and weight.dtype == torch.float32
    x = activations(13)
    for architecture in ("native", *OLDER):
        library = cpu.load(cpu.build(architecture))
        packed = pack_codes(library, [codes], paired=False, pages=Pages())
        assert packed is not None and packed.panels.nbytes < 1.32 * PANELS * 32 * COLUMNS
        found = product(library, packed, x)
        assert_exact(found, x, weight)
        for row in range(len(x)):
            assert torch.equal(product(library, packed, x[row : row + 1])[0], found[row])


def test_weights_of_several_kinds_are_stacked(tmp_path: Path) -> None:
    library = cpu.load(cpu.build())
    cases = []
    for name in ("Q4_K", "Q5_0", "Q6_K"):
        (tmp_path / name).mkdir()
        codes, weight = from_gguf(tmp_path / name, name)
        cases.append((codes.reordered(torch.arange(64)), weight[:64]))
    packed = pack_codes(library, [codes for codes, _ in cases], paired=False, pages=Pages())
    assert packed is not None and packed.kinds is not None
    x = activations(3)
    assert_exact(product(library, packed, x), x, torch.cat([weight for _, weight in cases]))
    assert pack_codes(library, [codes for codes, _ in cases], paired=True, pages=Pages()) is None


def test_weights_whose_activations_differ_are_not_stacked(tmp_path: Path) -> None:
    table, _ = from_bitsandbytes(tmp_path, "nf4 64")
    integers, _ = from_gguf(tmp_path, "Q8_0")
    rows = torch.arange(64)
    parts = [table.reordered(rows), integers.reordered(rows)]
    assert pack_codes(cpu.load(cpu.build()), parts, paired=False, pages=Pages()) is None


@pytest.mark.parametrize("case", ["bitsandbytes int8", "compressed-tensors fp8 per channel"])
def test_scales_that_are_not_finite_are_refused(case: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    make, name = CASES[case]
    make(tmp_path, name)
    tensors = load_file(tmp_path / "model.safetensors")
    (scale,) = (key for key in tensors if key.endswith(("SCB", "weight_scale")))
    tensors[scale][3] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors")
    reader = open_weights(tmp_path, json.loads((tmp_path / "config.json").read_text()))
    assert isinstance(reader, CodeReader)
    with pytest.raises(CheckpointError, match=r"m\.weight has scales that are not finite"):
        reader.codes("m.weight")


def test_columns_that_groups_do_not_divide_are_not_codes(tmp_path: Path) -> None:
    config = {"dtype": "float32", "quantization_config": {"quant_method": "bitsandbytes"}}
    tensors = {"m.weight": torch.ones(8, 40, dtype=torch.int8), "m.SCB": torch.ones(8)}
    save_file(tensors, tmp_path / "model.safetensors")
    reader = open_weights(tmp_path, config)
    assert isinstance(reader, CodeReader)
    assert reader.codes("m.weight") is None and reader.storage("m.weight") == "INT8"


def test_four_bits_at_load_lose_less_than_q4_1() -> None:
    library, weight = cpu.load(cpu.build()), random_weight()
    packed = pack_dense(library, weight, paired=False, bits=Kind.INT4, pages=Pages())
    # Each row of activations picks a column: 1 in groups of zeros is exact, too.
    found = product(library, packed, torch.eye(COLUMNS)).T
    theirs = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), Q4_1), Q4_1))
    assert (found - weight).square().mean() < 0.9 * (theirs - weight).square().mean()
