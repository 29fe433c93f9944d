"""Protects: each preset gives each tensor the type, and the bytes, that llama.cpp's own quantiser would."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from tuneserve.artifacts.gguf import PRESETS
from tuneserve.artifacts.gguf._mix import Shape, _stays_f32, tensor_types
from tuneserve.artifacts.gguf._types import tensor_type
from tuneserve.errors import InputError

QUANTISED = [name for name, preset in PRESETS.items() if preset.base not in ("F32", "F16", "BF16")]


def dense(hidden: int, inner: int, layers: int, kv: int, vocabulary: int, tied: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, hidden), "output_norm.weight": (hidden,)}
    if not tied:
        shapes["output.weight"] = (vocabulary, hidden)
    for layer in range(layers):
        rows = {"attn_q": hidden, "attn_k": kv, "attn_v": kv, "attn_output": hidden, "ffn_gate": inner, "ffn_up": inner}
        shapes |= {f"blk.{layer}.{name}.weight": (size, hidden) for name, size in rows.items()}
        shapes |= {f"blk.{layer}.ffn_down.weight": (hidden, inner), f"blk.{layer}.attn_norm.weight": (hidden,)}
        shapes[f"blk.{layer}.attn_q.bias"] = (hidden,)
    return shapes


def experts(hidden: int, inner: int, layers: int, kv: int, count: int, shared: bool) -> dict[str, tuple[int, ...]]:
    shapes = dense(hidden, inner, layers, kv, 32000, tied=False)
    for layer in range(layers):
        block = f"blk.{layer}."
        for name in ("ffn_gate", "ffn_up", "ffn_down"):
            shape = shapes.pop(f"{block}{name}.weight")
            shapes[f"{block}{name}_exps.weight"] = (count, *shape)
            if shared:
                shapes[f"{block}{name}_shexp.weight"] = shape
        shapes[f"{block}ffn_gate_inp.weight"] = (count, hidden)
        if shared:
            shapes[f"{block}ffn_gate_inp_shexp.weight"] = (1, hidden)
    return shapes


def fused(hidden: int, inner: int, layers: int) -> dict[str, tuple[int, ...]]:
    shapes = dense(hidden, inner, layers, hidden, 32064, tied=False)
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"):
            del shapes[f"blk.{layer}.{name}.weight"]
        shapes[f"blk.{layer}.attn_qkv.weight"] = (3 * hidden, hidden)
        shapes[f"blk.{layer}.ffn_up.weight"] = (2 * inner, hidden)
    return shapes


MODELS = {
    "llama-8b": (("llama", 32, 32, 8, 0), dense(4096, 14336, 32, 1024, 128256, tied=False)),
    "llama-70b": (("llama", 80, 64, 8, 0), dense(8192, 28672, 80, 1024, 128256, tied=False)),
    "llama-1b": (("llama", 16, 32, 8, 0), dense(2048, 8192, 16, 512, 128256, tied=True)),
    "qwen2-0.5b": (("qwen2", 24, 14, 2, 0), dense(896, 4864, 24, 128, 151936, tied=True)),
    "odd": (("qwen2", 9, 2, 2, 0), dense(48, 96, 9, 48, 400, tied=False)),
    "mixtral": (("llama", 32, 32, 8, 8), experts(4096, 14336, 32, 1024, 8, shared=False)),
    "qwen2-moe": (("qwen2moe", 24, 16, 16, 60), experts(2048, 1408, 24, 2048, 60, shared=True)),
    "qwen3-moe": (("qwen3moe", 48, 32, 4, 128), experts(2048, 768, 48, 512, 128, shared=False)),
    "phi3": (("phi3", 32, 32, 32, 0), fused(3072, 8192, 32)),
}


class _Description(ctypes.Structure):
    _fields_ = (
        ("architecture", ctypes.c_char_p),
        *((name, ctypes.c_uint32) for name in ("embd", "ff", "layer", "head", "head_kv", "expert", "head_k", "head_v")),
    )


def llama_cpp_types(shape: Shape, shapes: dict[str, tuple[int, ...]], preset: str) -> dict[str, int]:
    """Ask llama.cpp's own rules, which it exports for its own tests, about tensors without data."""
    import llama_cpp

    library, pointer = llama_cpp.llama_cpp._lib, ctypes.c_void_p
    from_metadata = library._Z31llama_quant_model_from_metadataPK22llama_quant_model_desc
    start = library._Z16llama_quant_initPK11llama_modelPK27llama_model_quantize_params
    choose = library._Z25llama_quant_compute_typesP19quantize_state_impl11llama_ftypePP11ggml_tensorP9ggml_typem
    ggml = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    from_metadata.restype = start.restype = ggml.ggml_init.restype = ggml.ggml_new_tensor.restype = pointer
    start.argtypes = [pointer, pointer]
    choose.argtypes = [pointer, ctypes.c_int, pointer, pointer, ctypes.c_size_t]
    ggml.ggml_new_tensor.argtypes = [pointer, ctypes.c_int, ctypes.c_int, pointer]
    ggml.ggml_set_name.argtypes = [pointer, ctypes.c_char_p]
    ggml.ggml_free.argtypes = [pointer]

    class Memory(ctypes.Structure):
        _fields_ = (("size", ctypes.c_size_t), ("buffer", pointer), ("no_alloc", ctypes.c_bool))

    ggml.ggml_init.argtypes = [Memory]
    context = ggml.ggml_init(Memory(1 << 20 | 512 * len(shapes), None, True))
    # Sorted as llama.cpp sorts the tensors of a file.
    names = sorted(
        (name for name, dimensions in shapes.items() if not _stays_f32(name, dimensions)),
        key=lambda name: (int(name.split(".")[1]) if name.startswith("blk.") else -1, name),
    )
    tensors = (pointer * len(names))()
    for index, name in enumerate(names):
        dimensions = (ctypes.c_int64 * len(shapes[name]))(*reversed(shapes[name]))
        tensors[index] = ggml.ggml_new_tensor(context, 1, len(dimensions), dimensions)
        ggml.ggml_set_name(tensors[index], name.encode())
    description = _Description(
        shape.architecture.encode(), 64, 64, shape.layers, shape.heads, shape.kv_heads, shape.experts, 64, 64
    )
    model = from_metadata(ctypes.byref(description))
    options = llama_cpp.llama_model_quantize_default_params()
    chosen = (ctypes.c_int * len(names))()
    state = start(model, ctypes.byref(options))
    choose(state, PRESETS[preset].file_type, tensors, chosen, len(names))
    ggml.ggml_free(context)
    return dict(zip(names, chosen, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_all_presets_choose_the_types_of_llama_cpp(name: str) -> None:
    (architecture, layers, heads, kv_heads, count), shapes = MODELS[name]
    shape = Shape(architecture=architecture, layers=layers, heads=heads, kv_heads=kv_heads, experts=count)
    needed_a_matrix = set()
    for preset in QUANTISED:
        theirs = llama_cpp_types(shape, shapes, preset)
        try:
            ours = tensor_types(preset, shapes, shape)
        except InputError:
            needed_a_matrix.add(preset)
            continue
        assert {tensor: tensor_type(ours[tensor]).number for tensor in theirs} == theirs, preset
        assert all(kind == "F32" for tensor, kind in ours.items() if tensor not in theirs)
    assert needed_a_matrix <= {"q2_k_s", "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs"}


def stored(path: Path) -> dict[str, tuple[str, bytes]]:
    return {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in GGUFReader(path).tensors}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"hidden_size": 256, "intermediate_size": 32, "num_hidden_layers": 8, "num_key_value_heads": 1}),
        ("mixtral", {"hidden_size": 256, "num_local_experts": 8, "intermediate_size": 32}),
    ],
)
@pytest.mark.parametrize("preset", ["q2_k", "q4_k_m", "q4_0", "iq4_xs"])
def test_the_file_is_what_llama_cpp_quantises(
    family: str,
    changes: dict[str, Any],
    preset: str,
    make_family: Callable[..., Any],
    make_gguf: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    import llama_cpp

    home = tmp_path_factory.getbasetemp() / f"mix-{family}"
    if not home.exists():
        make_family(home, family, head_dim=16, **changes)
        make_gguf(home, home, "bf16")
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.nthread = PRESETS[preset].file_type, 2
    theirs = home / f"theirs-{preset}.gguf"
    assert llama_cpp.llama_model_quantize(str(home / "tiny-BF16.gguf").encode(), str(theirs).encode(), options) == 0
    assert stored(make_gguf(home, home, preset)) == stored(theirs)
    if preset == "q4_k_m":
        kinds = {kind for kind, _ in stored(theirs).values()}
        assert {"Q4_K", "Q6_K", "F32"} <= kinds


@pytest.mark.parametrize("preset", ["iq2_xs", "iq1_s", "iq3_xxs", "q2_k_s"])
def test_a_preset_that_needs_an_importance_matrix_is_refused_without_one(preset: str) -> None:
    _, shapes = MODELS["llama-1b"]
    shape = Shape(architecture="llama", layers=16, heads=32, kv_heads=8, experts=0)
    with pytest.raises(InputError, match="imatrix-from"):
        tensor_types(preset, shapes, shape)
    weights = [name for name in shapes if name.startswith("blk.") and name.endswith("weight")]
    assert "F16" not in tensor_types(preset, shapes, shape, weights).values()
    with pytest.raises(InputError, match=r"none for blk\.0\."):
        tensor_types(preset, shapes, shape, weights[10:])
