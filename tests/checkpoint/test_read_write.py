"""What is written is read back unchanged, by us and by the reference implementation."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneserve.checkpoint import SafetensorsWriter, TensorSpec, open_safetensors

TENSORS = {
    "bf16": torch.randn(3, 5).to(torch.bfloat16),
    "f16": torch.randn(7).half(),
    "f32": torch.randn(2, 3, 4),
    "f64": torch.randn(2).double(),
    "i64": torch.arange(5),
    "u8": torch.arange(5, dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "f8": torch.randn(4, 4).to(torch.float8_e4m3fn),
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
}


def test_reads_every_dtype_as_the_reference_does(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    checkpoint = open_safetensors(path)
    assert checkpoint.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        ours = checkpoint.read(name)
        assert ours.dtype == tensor.dtype
        assert ours.shape == tensor.shape
        assert torch.equal(ours.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_writes_what_the_reference_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"b": torch.randn(3, 5), "a": torch.randn(7)}
    with SafetensorsWriter(path, [TensorSpec(n, "F32", tuple(t.shape)) for n, t in tensors.items()]) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor.flatten().view(torch.uint8).numpy().data)
    for name, tensor in load_file(path).items():
        assert torch.equal(tensor, tensors[name])
    assert list(open_safetensors(path).tensors) == ["b", "a"]


def test_leaving_a_planned_tensor_out_is_our_own_bug(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="1 planned tensors"),
        SafetensorsWriter(tmp_path / "x.safetensors", [TensorSpec("a", "F32", (1,))]),
    ):
        pass
