"""One device's share of a checkpoint, under the checkpoint's own names."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tuneserve.adapters import MergedModel
from tuneserve.checkpoint import RowReader, StoredCodes, TensorSpec, WeightReader, codes_of, storage_of
from tuneserve.model._deferred import DeferredLinear
from tuneserve.model._linear import DenseLinear
from tuneserve.model._tensor_check import check_tensors, stacks_experts
from tuneserve.model._text_part import TextPart
from tuneserve.model._weights import Weights, load_weights
from tuneserve.spec import (
    EMBEDDING,
    HEAD,
    ExpertNames,
    ExpertsSpec,
    ModelSpec,
    Share,
    kv_heads_of,
    layer_names,
    split_spec,
    tensor_shapes,
)

_logger = logging.getLogger("tuneserve.model")


@dataclass(frozen=True)
class Cut:
    """What is taken of a tensor: ``ranges`` of dimension ``dim``, one after the other."""

    dim: int
    ranges: tuple[range, ...]

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of what is taken."""
        return (*whole[: self.dim], sum(map(len, self.ranges)), *whole[self.dim + 1 :])

    def take(self, whole: torch.Tensor) -> torch.Tensor:
        """Return it, in memory of its own."""
        return torch.cat([whole.narrow(self.dim, one.start, len(one)) for one in self.ranges], dim=self.dim)

    def scaled(self, group: int) -> "Cut | None":
        """Return the cut of what there is one of for ``group`` elements; None where it goes through a group."""
        if any(one.start % group or one.stop % group for one in self.ranges):
            return None
        return Cut(self.dim, tuple(range(one.start // group, one.stop // group) for one in self.ranges))


class ShardReader:
    """A :class:`~tuneserve.checkpoint.WeightReader` of a device's share of ``whole``.

    Of a weight that is cut along its rows only those are read, one that is cut along its columns is read whole. What is
    added to a sum over all devices, the bias of a layer that is cut along its columns, is zero on all but the first.
    """

    def __init__(self, whole: WeightReader, spec: ModelSpec, share: Share, *, stacked: bool) -> None:
        self._whole, self._share = whole, share
        self._cuts, self._added = _cuts(spec, share, stacked)
        self._tensors = {name: self._spec_of(one) for name, one in whole.tensors.items()}
        self._warned = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the whole."""
        return self._whole.files

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """The tensors, as large as the share of them."""
        return self._tensors

    def read(self, name: str) -> torch.Tensor:
        """Return the share of a tensor; raises what the whole does."""
        cut = self._cuts.get(name)
        if cut is not None and cut.dim == 0:
            return torch.cat([read_rows(self._whole, name, rows) for rows in cut.ranges])
        tensor = self._whole.read(name)
        if name in self._added and self._share.rank:
            return tensor.zero_()
        return tensor if cut is None else cut.take(tensor)

    def storage(self, name: str) -> str | None:
        """Return what a tensor's way of being stored is called; see :class:`~tuneserve.checkpoint.CodeReader`."""
        return storage_of(self._whole, name)

    def codes(self, name: str) -> StoredCodes | None:
        """Return the share of a weight as it is stored; None where that is in full, or where a group would be cut."""
        stored = codes_of(self._whole, name)
        cut = self._cuts.get(name)
        if stored is None or cut is None:
            return stored
        taken = _cut_codes(stored, cut)
        if taken is None and not self._warned:
            _logger.warning(
                "weights are dequantised where groups that share a scale do not divide over %d devices, %s first",
                self._share.size, name,
            )  # fmt: skip
            self._warned = True
        return taken

    def _spec_of(self, whole: TensorSpec) -> TensorSpec:
        cut = self._cuts.get(whole.name)
        return TensorSpec(whole.name, whole.dtype, whole.shape if cut is None else cut.shape(whole.shape))


def load_shard(
    spec: ModelSpec, reader: WeightReader, dtype: torch.dtype, device: torch.device, share: Share
) -> tuple[ModelSpec, Weights]:
    """Return what a device computes and its weights, linear layers deferred, the head with its part of the vocabulary.

    The last parts of a vocabulary that the devices do not divide are filled up with rows of zeros.

    Raises:
        CheckpointError, AdapterError: as of :func:`~tuneserve.model.load_weights`.
    """
    whole = TextPart(reader) if spec.wrapped else reader
    stacked = stacks_experts(whole)
    check_tensors(spec, whole, tensor_shapes(spec, stacked=stacked))
    own = replace(split_spec(spec, share.size), wrapped=False)
    weights = load_weights(own, ShardReader(whole, spec, share, stacked=stacked), dtype, device, deferred=True)
    each = -(-spec.vocab_size // share.size)
    rows = range(min(share.rank * each, spec.vocab_size), min((share.rank + 1) * each, spec.vocab_size))

    def load() -> DenseLinear:
        if len(rows) == each and spec.tied:
            return DenseLinear(weights.embedding[rows.start : rows.stop])
        head = torch.zeros(each, spec.hidden_size, dtype=dtype, device=device)
        if spec.tied:
            head[: len(rows)] = weights.embedding[rows.start : rows.stop]
        elif rows:
            head[: len(rows)] = read_rows(whole, HEAD, rows)
        return DenseLinear(head)

    def codes(name: str) -> StoredCodes | None:
        stored = codes_of(whole, name) if len(rows) == each else None
        return None if stored is None else _cut_codes(stored, Cut(0, (rows,)))

    name = EMBEDDING if spec.tied else HEAD
    how = storage_of(whole, name)
    head = DeferredLinear((name,), load, codes, lambda: None, () if how is None else (how,))
    return own, replace(weights, head=head)


def read_rows(reader: WeightReader, name: str, rows: range) -> torch.Tensor:
    """Return entries ``rows`` of the first dimension of a tensor, reading nothing else of it where that can be."""
    dims = len(reader.tensors[name].shape)
    if isinstance(reader, MergedModel) and (stored := reader.stored(name)) is not None:
        reader, name = stored
    if dims == 2 and isinstance(reader, RowReader):
        return reader.read_rows(name, rows.start, rows.stop)
    return reader.read(name)[rows.start : rows.stop]


def _cut_codes(stored: StoredCodes, cut: Cut) -> StoredCodes | None:
    """Return a part of a weight as it is stored, None where it goes through what shares a scale."""
    columns = stored.codes.shape[1]
    taken: list[torch.Tensor | None] = []
    for part in (stored.codes, stored.scales, stored.minima, stored.outer_scales, stored.outer_minima):
        own = None if part is None else cut.scaled(columns // part.shape[1] if cut.dim else 1)
        if part is not None and own is None:
            return None
        taken.append(None if part is None or own is None else own.take(part))
    codes, scales, *others = taken
    assert codes is not None and scales is not None
    return StoredCodes(stored.kind, codes, scales, *others)


def _cuts(spec: ModelSpec, share: Share, stacked: bool) -> tuple[dict[str, Cut], set[str]]:
    """Return what is cut how, and the biases that are added to sums over devices."""
    heads, kv_heads = share.of(spec.heads), kv_heads_of(spec, share)
    query, key = (_rows(one, spec.head_dim) for one in (heads, kv_heads))
    qkv = _parts(spec.fused, [(spec.q_size, query), (spec.kv_size, key), (spec.kv_size, key)])
    cuts: dict[str, Cut] = {}
    added: set[str] = set()
    for layer in range(spec.layers):
        names, experts = layer_names(spec, layer, stacked=stacked), spec.layer(layer).experts
        for module, cut in zip(names.qkv, qkv, strict=True):
            cuts |= {f"{module}.weight": cut, f"{module}.bias": cut}
        cuts[f"{names.output}.weight"] = Cut(1, (query,))
        added.add(f"{names.output}.bias")
        if names.sinks:
            cuts[names.sinks] = Cut(0, (heads,))
        if experts is not None and names.experts is not None:
            expert_cuts, biases = _expert_cuts(names.experts, experts, share)
            cuts |= expert_cuts
            added |= biases
            continue
        inner = share.of(spec.intermediate_size)
        for module, cut in zip(names.gate_up, _parts(spec.fused, [(spec.intermediate_size, inner)] * 2), strict=True):
            cuts |= {f"{module}.weight": cut, f"{module}.bias": cut}
        cuts[f"{names.down}.weight"] = Cut(1, (inner,))
        added.add(f"{names.down}.bias")
    return cuts, added


def _expert_cuts(names: ExpertNames, experts: ExpertsSpec, share: Share) -> tuple[dict[str, Cut], set[str]]:
    inner = share.of(experts.intermediate_size)
    if not names.stacked:
        cuts: dict[str, Cut] = {}
        for expert in range(experts.count):
            for module in (one.format(expert=expert) for one in names.gate_up):
                cuts |= {f"{module}.weight": Cut(0, (inner,)), f"{module}.bias": Cut(0, (inner,))}
            cuts[f"{names.down.format(expert=expert)}.weight"] = Cut(1, (inner,))
        return cuts, {f"{names.down.format(expert=expert)}.bias" for expert in range(experts.count)}
    # Where gate and up alternate, those of consecutive elements stand together.
    both = (_rows(inner, 2),) if names.interleaved else (inner, _moved(inner, experts.intermediate_size))
    rows, columns = (2, 1) if names.transposed else (1, 2)
    gate_up = names.gate_up[0]
    cuts = {gate_up: Cut(rows, both), f"{gate_up}_bias": Cut(1, both), names.down: Cut(columns, (inner,))}
    return cuts, {f"{names.down}_bias"}


def _parts(fused: bool, parts: list[tuple[int, range]]) -> list[Cut]:
    """Return the cuts of modules of so many rows each, or of one module in which they stand on each other."""
    if not fused:
        return [Cut(0, (rows,)) for _, rows in parts]
    ranges, begin = [], 0
    for size, rows in parts:
        ranges.append(_moved(rows, begin))
        begin += size
    return [Cut(0, tuple(ranges))]


def _rows(units: range, width: int) -> range:
    return range(units.start * width, units.stop * width)


def _moved(rows: range, by: int) -> range:
    return range(rows.start + by, rows.stop + by)
