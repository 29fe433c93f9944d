"""Dequantising and quantising a weight takes little more memory than the result: the work is done in slabs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tuneserve.checkpoint import TensorSpec
from tuneserve.checkpoint.quantised import Bnb4bitEncoder, open_weights

ROWS, COLUMNS = 8192, 4096
RESULT = ROWS * COLUMNS * 2
# Slabs, and what the allocator keeps of them; the values in fp32, as careless work would have them, are twice this.
SPARE = 64_000_000


def _peak(work: Callable[[], object]) -> int:
    """Return by how many bytes ``work`` raised the resident memory at its highest."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    result = work()
    peak = _status("VmHWM") - before
    del result
    return peak


def _status(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def _four_bit() -> tuple[dict[str, torch.Tensor], str]:
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [ROWS, COLUMNS]}
    return {
        "w": torch.zeros(ROWS * COLUMNS // 2, 1, dtype=torch.uint8),
        "w.absmax": torch.ones(ROWS * COLUMNS // 64),
        "w.quant_map": torch.tensor(
            [-1, -0.69619, -0.52507, -0.39492, -0.28444, -0.18477, -0.09105, 0, 0.07958, 0.16093, 0.24611, 0.33792,
             0.44071, 0.56262, 0.72296, 1]
        ),
        "w.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }, "bitsandbytes"  # fmt: skip


def _int8() -> tuple[dict[str, torch.Tensor], str]:
    return {"w.weight": torch.ones(ROWS, COLUMNS, dtype=torch.int8), "w.SCB": torch.ones(ROWS)}, "bitsandbytes"


def _fp8() -> tuple[dict[str, torch.Tensor], str]:
    weight = torch.ones(ROWS, COLUMNS).to(torch.float8_e4m3fn)
    return {"w.weight": weight, "w.weight_scale_inv": torch.ones(ROWS // 128, COLUMNS // 128)}, "fp8"


def _mxfp4() -> tuple[dict[str, torch.Tensor], str]:
    blocks = torch.zeros(32, COLUMNS, ROWS // 32 // 32, 16, dtype=torch.uint8)
    return {"w_blocks": blocks, "w_scales": torch.full(blocks.shape[:3], 127, dtype=torch.uint8)}, "mxfp4"


@pytest.mark.parametrize("make", [_four_bit, _int8, _fp8, _mxfp4])
def test_reading_peaks_at_the_result(tmp_path: Path, make: Callable[[], tuple[dict[str, torch.Tensor], str]]) -> None:
    tensors, method = make()
    save_file(tensors, tmp_path / "model.safetensors")
    del tensors
    config: dict[str, Any] = {"quantization_config": {"quant_method": method, "weight_block_size": [128, 128]}}
    reader = open_weights(tmp_path, config)
    (name,) = reader.tensors
    assert reader.tensors[name].nbytes == RESULT
    assert _peak(lambda: reader.read(name)) < RESULT + SPARE


def test_encoding_peaks_at_the_result() -> None:
    weight = torch.ones(ROWS, COLUMNS, dtype=torch.bfloat16)
    encoder, spec = Bnb4bitEncoder({"w"}), TensorSpec("w", "BF16", (ROWS, COLUMNS))
    assert _peak(lambda: encoder.encode(spec, weight)) < RESULT // 4 + SPARE
