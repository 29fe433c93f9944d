"""Protects: ggml's quantiser is found, checked, and given what it can take, or refused with a remedy."""

import subprocess
import sys
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch

from tuneserve.artifacts.gguf import PRESETS, _ggml
from tuneserve.artifacts.gguf._encode import encode
from tuneserve.errors import CheckpointError, InputError

# The tables of IQ1 take ggml a quarter of a minute to set up.
QUANTISED = sorted({preset.base for preset in PRESETS.values()} - {"F32", "F16", "BF16", "IQ1_S", "IQ1_M"})


@pytest.mark.parametrize("kind", QUANTISED)
def test_each_type_comes_back_near_what_went_in(kind: str) -> None:
    rows = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    encoded = encode(kind, rows, torch.ones(256))
    back = gguf.dequantize(encoded.numpy(), gguf.GGMLQuantizationType[kind])
    bits = 8 * encoded.numel() / rows.numel()
    # A uniform quantiser of b bits has a relative error near 2^-b of the range of a normal variable.
    assert np.abs(back - rows.numpy()).mean() < 4 * 2**-bits


def test_threads_do_not_change_bytes() -> None:
    rows = torch.randn(2000, 256)
    assert torch.equal(_ggml.quantise("Q4_K", rows, None, 1), _ggml.quantise("Q4_K", rows, None, 4))


@pytest.mark.parametrize("value", [1e6, -3.3e38, float("inf"), float("nan")])
def test_values_on_which_ggml_would_end_the_process_are_refused(value: float) -> None:
    rows = torch.ones(2, 256)
    rows[1, 3] = value
    with pytest.raises(CheckpointError, match="bf16"):
        _ggml.quantise("IQ3_S", rows, None, threads=1)


def test_an_importance_matrix_spends_bits_where_they_matter() -> None:
    rows = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    importance = torch.full((256,), 1e-4)
    importance[::8] = 1.0

    def error(weights: torch.Tensor | None) -> float:
        back = gguf.dequantize(encode("Q4_K", rows, weights).numpy(), gguf.GGMLQuantizationType.Q4_K)
        return float((importance * (torch.from_numpy(back) - rows) ** 2).sum())

    assert error(importance) < 0.7 * error(None)


def test_experts_are_weighed_one_by_one() -> None:
    stack = torch.randn(3, 4, 256)
    importance = torch.rand(3, 256)
    together = encode("Q4_K", stack, importance)
    for number in range(3):
        assert torch.equal(together[number], encode("Q4_K", stack[number], importance[number]))


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _ggml.load_ggml.cache_clear()
    monkeypatch.setattr(_ggml, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'tuneserve\[gguf\]'"):
        _ggml.load_ggml()
    monkeypatch.undo()
    _ggml.load_ggml()


@pytest.mark.parametrize("change", [{"ggml_type_size": 1}, {"ggml_blck_size": 1}, {"ggml_type_name": b"other"}])
def test_a_library_of_another_abi_is_refused(change: dict[str, object]) -> None:
    real = _ggml.load_ggml()
    names = ("ggml_type_name", "ggml_type_size", "ggml_blck_size")
    changed = {name: lambda number, name=name: change.get(name, getattr(real, name)(number)) for name in names}
    with pytest.raises(InputError, match="its version does not fit"):
        _ggml._check(SimpleNamespace(**changed))  # type: ignore[arg-type]


def test_no_backend_is_loaded() -> None:
    code = (
        "import sys; from tuneserve.artifacts.gguf._ggml import load_ggml; load_ggml();"
        "from pathlib import Path; maps = Path('/proc/self/maps').read_text();"
        "assert 'libggml-base' in maps and 'libggml-cpu' not in maps and 'libllama' not in maps;"
        "assert 'llama_cpp' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
