"""A compressed-tensors checkpoint is hostile until checked: what does not fit together is refused by name, quickly."""

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tuneserve.checkpoint.quantised import open_weights
from tuneserve.errors import CheckpointError

State = dict[str, torch.Tensor]
INT4: dict[str, Any] = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 8}


def _int4() -> State:
    """Return a weight ``[6, 24]`` in groups of eight."""
    return {
        "a.weight_packed": torch.zeros(6, 3, dtype=torch.int32),
        "a.weight_scale": torch.ones(6, 3, dtype=torch.bfloat16),
        "a.weight_shape": torch.tensor([6, 24]),
    }


def _open(directory: Path, state: State, weights: Any = INT4, group: Any = None, **more: Any) -> Any:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, directory / "model.safetensors")
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, **(group or {})}}
    quantisation = {"format": "pack-quantized", "config_groups": groups, **more, "quant_method": "compressed-tensors"}
    return open_weights(directory, {"dtype": "bfloat16", "quantization_config": quantisation})


def test_what_the_refusals_start_from_is_read(tmp_path: Path) -> None:
    weight = _open(tmp_path, _int4()).read("a.weight")
    assert weight.shape == (6, 24)
    assert (weight == -8).all()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"config_groups": []}, "config_groups"),
        ({"config_groups": {"g": ["Linear"]}}, "config_groups"),
        ({"config_groups": {"g": {"targets": "Linear", "weights": INT4}}}, "targets"),
        ({"config_groups": {"g": {"targets": [1], "weights": INT4}}}, "targets"),
        ({"config_groups": {"g": {"targets": ["x" * 2000], "weights": INT4}}}, "targets"),
        ({"config_groups": {}}, "a is stored quantised, but 0 groups"),
        ({"config_groups": {"g": {"targets": ["other.module"], "weights": INT4}}}, "but 0 groups"),
        ({"config_groups": {"g": {"targets": ["Linear"]}}}, "its group quantises no weights"),
        ({"config_groups": {n: {"targets": [n], "weights": INT4} for n in ("Linear", "Embedding")}}, "but 2 groups"),
        ({"format": "mixed-precision"}, "the format 'mixed-precision'"),
        ({"format": "marlin-24"}, "the format 'marlin-24'"),
        ({"format": ["pack-quantized"]}, "the format"),
        ({"format": "float-quantized"}, "the format 'float-quantized' with 4-bit int"),
        ({"format": "nvfp4-pack-quantized"}, "the format 'nvfp4-pack-quantized' with 4-bit int"),
        ({"ignore": ["a"]}, "a is in the ignore list"),
        ({"ignore": ["re:.*"]}, "a is in the ignore list"),
        ({"ignore": "lm_head"}, "malformed ignore"),
        ({"ignore": ["re:("]}, r"malformed pattern '\('"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsely"),
        ({"sparsity_config": [1]}, "sparsely"),
        ({"transform_config": {"config_groups": {"u": {}}}}, "rotates"),
        ({"moe_sparsity_config": {"method": "prune"}}, "experts"),
    ],
)
def test_configurations_that_cannot_be_read_are_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        _open(tmp_path, _int4(), **more)


@pytest.mark.parametrize(
    "weights",
    [
        [],
        {**INT4, "num_bits": "4"},
        {**INT4, "num_bits": True},
        {**INT4, "num_bits": 3},
        {**INT4, "num_bits": 2**70},
        {**INT4, "num_bits": -4},
        {**INT4, "type": "complex"},
        {**INT4, "type": ["int"]},
        {**INT4, "symmetric": "yes"},
        {**INT4, "dynamic": True},
        {**INT4, "strategy": "token"},
        {**INT4, "strategy": "other"},
        {**INT4, "strategy": {}},
        {**INT4, "strategy": "channel"},
        {**INT4, "group_size": None},
        {**INT4, "group_size": 0},
        {**INT4, "group_size": -2},
        {**INT4, "group_size": 8.0},
        {**INT4, "group_size": True},
        {**INT4, "group_size": 2**70},
        {**INT4, "group_size": 5},
        {**INT4, "group_size": 48},
        {**INT4, "block_structure": [8, 8]},
        {"num_bits": 4, "type": "int", "strategy": "block"},
        {"num_bits": 4, "type": "int", "strategy": "block", "block_structure": [0, 8]},
        {"num_bits": 4, "type": "int", "strategy": "block", "block_structure": [8, 2**70]},
        {"num_bits": 4, "type": "int", "strategy": "block", "block_structure": [8]},
        {"num_bits": 4, "type": "int", "strategy": "block", "block_structure": "8x-8"},
        {"num_bits": 4, "type": "int", "strategy": "block", "block_structure": "9" * 5000 + "x8"},
        {"num_bits": 4, "type": "int", "strategy": "block", "block_structure": [8, 8]},
    ],
)
def test_impossible_or_mismatched_weight_arguments_are_refused(tmp_path: Path, weights: Any) -> None:
    with pytest.raises(CheckpointError):
        _open(tmp_path, _int4(), weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a.weight_scale": None}, "a has no weight_scale"),
        ({"a.weight_shape": None}, "a has no weight_shape"),
        ({"a.weight_packed": None}, "a has no weight_packed"),
        ({"a.weight": torch.ones(6, 24)}, "a has a weight, which pack-quantized has no use for"),
        ({"a.weight_global_scale": torch.ones(1)}, "a has a weight_global_scale"),
        ({"a.weight_zero_point": torch.zeros(6, 3, dtype=torch.int8)}, "a has a weight_zero_point"),
        ({"a.weight_shape": torch.tensor([6, 25])}, "25 columns, which groups of 8 do not divide"),
        ({"a.weight_shape": torch.tensor([6, 32])}, r"I32 \[6, 3\] instead of I32 \[6, 4\]"),
        ({"a.weight_shape": torch.tensor([7, 24])}, r"instead of I32 \[7, 3\]"),
        ({"a.weight_shape": torch.tensor([6, -24])}, "impossible shape"),
        ({"a.weight_shape": torch.tensor([2**62, 2**62])}, "impossible shape"),
        ({"a.weight_shape": torch.tensor([0, 24])}, "impossible shape"),
        ({"a.weight_packed": torch.zeros(0, 3, dtype=torch.int32)}, "a has a weight_packed"),
        ({"a.weight_shape": torch.tensor([6, 24, 1])}, "weight_shape of I64"),
        ({"a.weight_shape": torch.tensor([6.0, 24.0])}, "weight_shape of F32"),
        ({"a.weight_packed": torch.zeros(6, 2, dtype=torch.int32)}, "a has a weight_packed"),
        ({"a.weight_packed": torch.zeros(6, 3, dtype=torch.int64)}, "a has a weight_packed of I64"),
        ({"a.weight_packed": torch.zeros(1, 6, 3, dtype=torch.int32)}, "in 3 dimensions instead of 2"),
        ({"a.weight_packed": torch.zeros((), dtype=torch.int32)}, "in 0 dimensions instead of 2"),
        ({"a.weight_scale": torch.ones(3, 6)}, r"weight_scale of F32 \[3, 6\] instead of BF16 \[6, 3\]"),
        ({"a.weight_scale": torch.ones(6, 3, dtype=torch.int32)}, "weight_scale of I32"),
        ({"a.weight_g_idx": torch.zeros(23, dtype=torch.int32)}, "weight_g_idx"),
        ({"b.weight": torch.ones(2, 2).to(torch.float8_e4m3fn)}, r"b\.weight is stored in F8_E4M3 but has no scale"),
        ({"b.weight": torch.ones(2, 2, dtype=torch.int8)}, r"b\.weight is stored in I8 but has no scale"),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused_by_name(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    state = {name: tensor for name, tensor in {**_int4(), **changes}.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        _open(tmp_path, state)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_an_empty_quantised_weight_is_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    state = {"a.weight": torch.zeros(shape, dtype=torch.int8), "a.weight_scale": torch.ones(1)}
    with pytest.raises(CheckpointError, match="a has the impossible shape"):
        _open(tmp_path, state, {"num_bits": 8, "type": "int"}, format="int-quantized")


def test_zero_points_must_be_there_where_the_configuration_has_them(tmp_path: Path) -> None:
    asymmetric = {**INT4, "symmetric": False}
    with pytest.raises(CheckpointError, match="a has no weight_zero_point"):
        _open(tmp_path, _int4(), asymmetric)
    with pytest.raises(CheckpointError, match=r"instead of I32 \[1, 3\]"):
        _open(tmp_path, {**_int4(), "a.weight_zero_point": torch.zeros(6, 3, dtype=torch.int32)}, asymmetric)


@pytest.mark.parametrize("index", [3, -2, 2**30])
def test_a_group_index_past_the_groups_is_refused_when_it_is_read(tmp_path: Path, index: int) -> None:
    group_index = torch.zeros(24, dtype=torch.int32)
    group_index[5] = index
    reader = _open(tmp_path, {**_int4(), "a.weight_g_idx": group_index})
    with pytest.raises(CheckpointError, match=r"a\.weight_g_idx points past the 3 groups"):
        reader.read("a.weight")


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", 16, ["bfloat16"]])
def test_a_dtype_that_weights_cannot_have_is_refused(tmp_path: Path, dtype: Any) -> None:
    save_file(_int4(), tmp_path / "model.safetensors")
    groups = {"g": {"targets": ["Linear"], "weights": INT4, "format": "pack-quantized"}}
    quantisation = {"quant_method": "compressed-tensors", "config_groups": groups}
    with pytest.raises(CheckpointError, match="names the dtype"):
        open_weights(tmp_path, {"dtype": dtype, "quantization_config": quantisation})


@pytest.mark.parametrize(
    "pattern",
    ["((((a{99}){99}){99}){99})", "(" * 60 + "a" + ")+" * 60, "(" * 60 + "a" + "){1,}" * 60, "(?:" * 240 + ")" * 240],
)
def test_patterns_that_explode_when_compiled_are_refused(tmp_path: Path, pattern: str) -> None:
    start = time.monotonic()
    with pytest.raises(CheckpointError, match="malformed pattern"):
        _open(tmp_path, _int4(), ignore=[f"re:{pattern}"])
    assert time.monotonic() - start < 5


def test_patterns_that_never_finish_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneserve.checkpoint.quantised.compressed_tensors import _config

    monkeypatch.setattr(_config, "_MATCHING_SECONDS", 0.2)
    state = {name.replace("a.", "a" * 60 + "bc."): tensor for name, tensor in _int4().items()}
    with pytest.raises(CheckpointError, match="take too long to match"):
        _open(tmp_path, state, ignore=["re:(a|aa)*(a|aa)*(a|aa)*b$"])


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_KEYS = ("num_bits", "type", "strategy", "group_size", "block_structure", "symmetric", "dynamic")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    weights=st.dictionaries(st.sampled_from(_KEYS), _JSON), key=st.sampled_from(("ignore", "format", "x")), value=_JSON
)
def test_random_configurations_never_crash(tmp_path: Path, weights: Any, key: str, value: Any) -> None:
    with contextlib.suppress(CheckpointError):
        _open(tmp_path, _int4(), {**INT4, **weights}, **{key: value}).read("a.weight")
