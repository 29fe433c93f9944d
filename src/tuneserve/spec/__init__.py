"""One typed description of a decoder, read from a model's configuration; one module per family."""

from tuneserve.spec._bounds import check_buildable
from tuneserve.spec._computed import Computation, computation_of
from tuneserve.spec._fields import Fields
from tuneserve.spec._gguf_names import GGUF_ARCHITECTURES, GgufPart, gguf_parts, hf_name
from tuneserve.spec._positions import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    QueryScaling,
    RopeScaling,
    RopeSpec,
    YarnScaling,
)
from tuneserve.spec._read import FAMILIES, read_spec
from tuneserve.spec._shapes import tensor_shapes
from tuneserve.spec._spec import (
    Activation,
    ClampedSwiglu,
    DeltaNetSpec,
    ExpertsSpec,
    LayerInputSpec,
    LayerSpec,
    ModelSpec,
)
from tuneserve.spec._split import Share, kv_heads_of, reasons_against_split, split_spec
from tuneserve.spec._tensors import (
    EMBEDDING,
    HEAD,
    LAYER_EMBEDDING,
    LAYER_PROJECTION,
    LAYER_PROJECTION_NORM,
    NORM,
    DeltaNetNames,
    ExpertNames,
    LayerInputNames,
    LayerNames,
    is_unused,
    layer_names,
    plain_name,
)

__all__ = [
    "EMBEDDING",
    "FAMILIES",
    "GGUF_ARCHITECTURES",
    "HEAD",
    "LAYER_EMBEDDING",
    "LAYER_PROJECTION",
    "LAYER_PROJECTION_NORM",
    "NORM",
    "Activation",
    "ClampedSwiglu",
    "Computation",
    "DeltaNetNames",
    "DeltaNetSpec",
    "ExpertNames",
    "ExpertsSpec",
    "Fields",
    "GgufPart",
    "LayerInputNames",
    "LayerInputSpec",
    "LayerNames",
    "LayerSpec",
    "LinearScaling",
    "Llama3Scaling",
    "LongRopeScaling",
    "ModelSpec",
    "ProportionalScaling",
    "QueryScaling",
    "RopeScaling",
    "RopeSpec",
    "Share",
    "YarnScaling",
    "check_buildable",
    "computation_of",
    "gguf_parts",
    "hf_name",
    "is_unused",
    "kv_heads_of",
    "layer_names",
    "plain_name",
    "read_spec",
    "reasons_against_split",
    "split_spec",
    "tensor_shapes",
]
