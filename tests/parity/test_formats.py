"""Protects: in each format a right export passes its limits, and a wrong one is found under the format's noise."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tuneserve import artifacts, parity
from tuneserve.checkpoint import TensorSpec, WeightReader
from tuneserve.errors import InputError
from tuneserve.parity import thresholds_for
from tuneserve.parity._method import method_of
from tuneserve.sources import ResolvedSource, open_model, resolve

Make = Callable[..., Path]
Change = Callable[[str, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Changed:
    """A reader whose weights are changed as they are read, like those of a quantised checkpoint."""

    reader: WeightReader
    change: Change

    @property
    def files(self) -> tuple[Path, ...]:
        return self.reader.files

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        return self.reader.tensors

    def read(self, name: str) -> torch.Tensor:
        return self.change(name, self.reader.read(name))


def integers(bits: int, group: int | None) -> Callable[[torch.Tensor], torch.Tensor]:
    def quantise(weight: torch.Tensor) -> torch.Tensor:
        groups = weight.reshape(-1, group or weight.shape[1])
        step = groups.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        result: torch.Tensor = ((groups / step).round() * step).reshape(weight.shape)
        return result

    return quantise


def fp8(weight: torch.Tensor) -> torch.Tensor:
    scale = weight.abs().amax(1, keepdim=True) / 448
    return (weight / scale).to(torch.float8_e4m3fn).float() * scale


def nf4(weight: torch.Tensor) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weight.contiguous(), blocksize=64, quant_type="nf4")
    found: torch.Tensor = dequantize_4bit(packed, state).float()
    return found


def fp4(block: int, scale_bits: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return E2M1 with a scale per block, which is a power of two or has more bits."""
    levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])

    def quantise(weight: torch.Tensor) -> torch.Tensor:
        groups = weight.reshape(-1, block)
        largest = groups.abs().amax(1, keepdim=True)
        scale = largest / 6 if scale_bits else torch.exp2(largest.log2().floor() - 2)
        nearest = (groups.abs() / scale).unsqueeze(-1).sub(levels).abs().argmin(-1)
        return (levels[nearest] * groups.sign() * scale).reshape(weight.shape)

    return quantise


def ggml(kind: str) -> Callable[[torch.Tensor], torch.Tensor]:
    def quantise(weight: torch.Tensor) -> torch.Tensor:
        import gguf

        type_ = gguf.GGMLQuantizationType[kind]
        blocks = gguf.quants.quantize(weight.numpy(), type_)
        return torch.from_numpy(gguf.quants.dequantize(blocks, type_)).reshape(weight.shape)

    return quantise


FORMATS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "merged_4bit": nf4,
    "fp8": fp8,
    "int8": integers(8, None),
    "int4": integers(4, 128),
    "mxfp4": fp4(32, 0),
    "nvfp4a16": fp4(16, 8),
    "gguf:q8_0": ggml("Q8_0"),
    "gguf:q5_1": ggml("Q5_1"),
    "gguf:q5_0": ggml("Q5_0"),
    "gguf:q4_1": ggml("Q4_1"),
    "gguf:q4_0": ggml("Q4_0"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, write_model: Make) -> Path:
    home = tmp_path_factory.mktemp("models")
    return write_model(home / "base", hidden_size=128, head_dim=32, intermediate_size=256)


@pytest.fixture(scope="module")
def adapter(base: Path, write_adapter: Make) -> Path:
    # A delta of about a twentieth of the weights, less than the noise of four bits.
    return write_adapter(base.parent / "adapter", base, scale=0.035)


@pytest.fixture(scope="module")
def merged(adapter: Path) -> Path:
    artifacts.export(adapter, adapter.parent / "merged", verify=False)
    return adapter.parent / "merged"


def checked(
    candidate: Path, adapter: Path, method: str, wrong: Change | None = None, **config: Any
) -> parity.ParityReport:
    def opened(source: ResolvedSource) -> tuple[WeightReader, Mapping[str, Any]]:
        reader, settings = open_model(source)
        if source.adapter_dir is not None:
            return reader, settings

        def stored(name: str, tensor: torch.Tensor) -> torch.Tensor:
            tensor = tensor if wrong is None else wrong(name, tensor)
            return FORMATS[method](tensor.float()) if "proj" in name else tensor

        return Changed(reader, stored), {**settings, **config}

    with patch("tuneserve.parity._sides.open_model", opened):
        return parity.verify(candidate, adapter, method=method)


@pytest.mark.parametrize("method", FORMATS)
def test_a_right_export_passes_and_its_error_is_what_the_format_explains(
    method: str, merged: Path, adapter: Path
) -> None:
    report = checked(merged, adapter, method)
    assert report.passed, report.failures
    assert report.modules is not None
    assert 0.4 < report.modules.worst_error < 1.7
    assert report.modules.delta_share == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("method", FORMATS)
def test_one_skipped_module_is_found_in_any_format(method: str, merged: Path, adapter: Path, base: Path) -> None:
    original, _ = open_model(resolve(base))
    name = "model.layers.1.self_attn.v_proj.weight"
    report = checked(merged, adapter, method, lambda key, tensor: original.read(key) if key == name else tensor)
    assert report.modules is not None
    assert report.modules.skipped == ("model.layers.1.self_attn.v_proj",)
    assert report.diagnosis[0] == "merge: the adapter was not merged into model.layers.1.self_attn.v_proj"


@pytest.mark.parametrize("method", ["merged_4bit", "fp8", "gguf:q4_0"])
def test_broken_artifacts_are_found_in_coarse_formats_too(
    method: str, merged: Path, adapter: Path, base: Path, tmp_path: Path, write_model: Make
) -> None:
    original, _ = open_model(resolve(base))

    def doubled(name: str, tensor: torch.Tensor) -> torch.Tensor:
        before = original.read(name).float()
        return before + 2 * (tensor.float() - before)

    report = checked(merged, adapter, method, doubled)
    assert not report.passed
    assert report.diagnosis[0].startswith("merge: every delta is there 2")

    report = checked(base, adapter, method)
    assert report.diagnosis[0] == "merge: the adapter is in none of its modules; the candidate is the base alone"

    report = checked(merged, adapter, method, rope_theta=77777.0)
    assert report.diagnosis[0].startswith("configuration: ")

    other = write_model(tmp_path / "other", hidden_size=128, head_dim=32, intermediate_size=256, seed=8)
    report = checked(other, adapter, method)
    assert report.diagnosis[0].startswith("another base: ")


def test_a_base_rounded_twice_is_told_from_the_formats_own_error(merged: Path, adapter: Path) -> None:
    report = checked(merged, adapter, "int8", lambda name, t: nf4(t.float()) if "proj" in name else t)
    assert not report.passed
    assert report.diagnosis[0].startswith("quantisation: the weights are off by")


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({}, "merged_16bit"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "merged_4bit"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"group_0": {"weights": {"type": "int", "num_bits": 4}}},
                }
            },
            "int4",
        ),
    ],
)
def test_the_method_is_read_from_the_quantisation(config: dict[str, Any], method: str, base: Path) -> None:
    assert method_of(resolve(base), config) == method


def test_the_method_is_read_from_the_manifest(merged: Path) -> None:
    assert method_of(resolve(merged), {"quantization_config": {"quant_method": "bitsandbytes"}}) == "merged_16bit"


def test_a_quantisation_that_nothing_names_is_refused(base: Path) -> None:
    with pytest.raises(InputError, match="--method"):
        method_of(resolve(base), {"quantization_config": {"quant_method": "hqq"}})


def test_limits_grow_with_the_formats_error() -> None:
    methods = ["merged_16bit", "gguf:q8_0", "fp8", "gguf:q5_k_m", "gguf:q4_k_m", "gguf:q3_k_s", "gguf:q2_k"]
    limits = [thresholds_for(method) for method in methods]
    assert [limit.mean_kl for limit in limits] == sorted(limit.mean_kl for limit in limits)
    assert [limit.agreement for limit in limits] == sorted((limit.agreement for limit in limits), reverse=True)
    assert all(limit.reason for limit in limits)


def test_a_base_that_was_quantised_before_is_not_mistaken_for_a_wrong_merge(
    tmp_path: Path, write_model: Make, write_adapter: Make
) -> None:
    from safetensors.torch import load_file, save_file

    base = write_model(tmp_path / "base", hidden_size=128, head_dim=32, intermediate_size=256)
    tensors = load_file(base / "model.safetensors")
    once = {n: ggml("Q4_1")(t.float()).bfloat16() if "proj" in n else t for n, t in tensors.items()}
    save_file(once, base / "model.safetensors", metadata={"format": "pt"})
    adapter = write_adapter(tmp_path / "adapter", base, scale=0.02)
    artifacts.export(adapter, tmp_path / "merged", verify=False)
    report = checked(tmp_path / "merged", adapter, "gguf:q4_1")
    assert report.modules is not None
    assert (report.modules.skipped, report.modules.exceeded) == ((), ())
    assert any("quantised before" in note for note in report.notes)
    assert report.thresholds.mean_kl > parity.thresholds_for("gguf:q4_1").mean_kl
    exact = checked(tmp_path / "merged", adapter, "gguf:q8_0")
    assert exact.passed, exact.failures


@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_wider_gguf_types_of_a_merge_in_bfloat16_pass(kind: str, merged: Path, adapter: Path, tmp_path: Path) -> None:
    from shutil import copytree

    from safetensors.torch import load_file, save_file

    wide = {"f16": torch.float16, "f32": torch.float32}[kind]
    copytree(merged, tmp_path / "wide")
    tensors = {name: tensor.to(wide) for name, tensor in load_file(merged / "model.safetensors").items()}
    save_file(tensors, tmp_path / "wide" / "model.safetensors", metadata={"format": "pt"})
    report = parity.verify(tmp_path / "wide", adapter, method=f"gguf:{kind}")
    assert report.passed, report.failures
