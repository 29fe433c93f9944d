"""The weights of both sides compared one by one, each while the reference's layer is there.

Against every weight of the candidate stands the reference's: PEFT's own merge in float32 where it has an adapter, else
the base's. Two things are measured. The *error* ‖c - r‖ in units of what the candidate's format explains: rounding w
once to a grid of spacing s(w) errs like a uniform variable, of variance s(w)²/12; a coarser format by its ε‖r‖. And
for an adapted weight the *share* of the delta Δ that is in the candidate, ⟨c - base, Δ⟩ / ⟨Δ, Δ⟩, a matched filter:
0 for a skipped module and 2 for a doubled one even where the format's noise is many times the delta, for that noise
does not know of Δ and averages out over the weight, with standard deviation ‖c - r‖ / (√n ‖Δ‖).

Rounding to 16 bits loses of a small delta what is under half a spacing, the same way for everyone, so the share that
rounding itself leaves is computed too. A base that lies on a coarse grid of its own, because it was once quantised to
five bits or fewer, is the other case in which noise knows of Δ: quantised again, its values fall on the same steps with
a small delta as without, or, where they lie between two steps, the delta alone decides and is blown up. What was merged
and then rounded away is the same file as what was never merged, so the share says nothing there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tuneserve.parity._adapter import merged
from tuneserve.parity._stream import Slot, StreamedModel, Unit
from tuneserve.parity._weights import ModelWeights

_CHUNK = 1 << 16
_EXPONENT = 0x7F800000
_ROUNDED = {"BF16": torch.bfloat16, "F16": torch.float16}
# Of 32 values on a grid of five bits about 18 differ, of 32 in bfloat16 nearly all.
_GRID_BLOCKS, _GRID_DIFFERENT = 1024, 22
# Formats that err by less keep a delta over any grid.
_COARSE = 0.01
# Sums in another order differ in the last bits of float32.
_FLOAT32_EPS = 2.0**-20


@dataclass(frozen=True)
class WeightComparison:
    """One weight: its ``error`` in units of the format's, ``relative`` to its size, and what became of its delta.

    ``share`` is None without a delta. ``kept`` is the share that rounding leaves, ``noise`` the standard deviation.
    ``vector`` are norms and biases, which every format keeps in 16 bits or more. ``requantised``: the base lies
    on a coarse grid and the format is coarse too.
    """

    name: str
    adapted: bool
    vector: bool
    error: float
    relative: float
    share: float | None = None
    kept: float = 1.0
    noise: float = 0.0
    requantised: bool = False

    @property
    def skipped(self) -> bool:
        """Whether less than half of the delta is in the weight, beyond doubt, and that was not to be expected."""
        return self._lacks and not self.requantised

    @property
    def exceeded(self) -> bool:
        """Whether more than one and a half deltas are in the weight, beyond doubt, and that was not to be expected."""
        return self._exceeds and not self.requantised

    @property
    def distorted(self) -> bool:
        """Whether the delta is far from whole because of what the format does to a base on a grid."""
        return self.requantised and (self._lacks or self._exceeds)

    @property
    def _lacks(self) -> bool:
        return self.share is not None and self.share + 4 * self.noise < min(self.kept, 1.0) / 2

    @property
    def _exceeds(self) -> bool:
        return self.share is not None and self.share - 4 * self.noise > max(self.kept, 1.0) * 1.5


class Audit:
    """Compares each unit of ``reference`` that runs with the ``candidate``'s weights of the same names."""

    def __init__(self, reference: StreamedModel, candidate: ModelWeights, format_error: float | None) -> None:
        self.found: list[WeightComparison] = []
        self.unmerged: list[str] = []
        self._reference, self._candidate, self._format_error = reference, candidate, format_error
        self._done: set[int] = set()

    def visit(self, unit: Unit) -> None:
        """Compare the weights of ``unit``, once."""
        if id(unit) in self._done:
            return
        self._done.add(id(unit))
        modules: dict[int, list[Slot]] = {}
        for slot in unit.slots:
            modules.setdefault(id(slot.module), []).append(slot)
        for slots in modules.values():
            wrapper = self._reference.wrappers.get(id(slots[0].module))
            if wrapper is not None:
                for slot in slots:
                    self._reference.require(slot)
            bases = {slot.name: self._reference.base_weight(slot) for slot in slots}
            own = {slot.attribute: slot.tensor for slot in slots if self._reference.replaced(slot)}
            if wrapper is None:
                self._compare(slots, bases, own, adapted=bool(own))
                continue
            try:
                with merged(slots[0].module, wrapper) as effective:
                    self._compare(slots, bases, effective, adapted=True)
            except RuntimeError:
                self.unmerged.append(slots[0].name.rpartition(".")[0])

    def finish(self) -> None:
        """Compare what has not run, like the towers of a multimodal model."""
        for unit in self._reference.units:
            self.visit(unit)
            self._reference.release(unit)

    def _compare(
        self,
        slots: list[Slot],
        bases: dict[str, torch.Tensor],
        effective: dict[str, torch.Tensor],
        *,
        adapted: bool,
    ) -> None:
        by_name = {slot.name: slot for slot in slots}
        for names in self._candidate.names(iter(by_name)):
            for name, ours in self._candidate.read(names).items():
                base = bases[name]
                theirs = effective.get(by_name[name].attribute, base)
                if theirs.shape != ours.shape or not ours.is_floating_point():
                    continue
                self.found.append(self._weigh(name, theirs, base, ours, adapted=adapted))

    def _weigh(
        self, name: str, theirs: torch.Tensor, base: torch.Tensor, ours: torch.Tensor, *, adapted: bool
    ) -> WeightComparison:
        vector = theirs.dim() < 2
        if not theirs.dim():
            theirs, base, ours = theirs.view(1), base.view(1), ours.view(1)
        changed = adapted and theirs.data_ptr() != base.data_ptr()
        if not changed and theirs.dtype == ours.dtype and torch.equal(theirs, ours):
            return WeightComparison(name, adapted, vector, 0.0, 0.0)
        dtype = self._candidate.stored_dtype(name)
        sums = torch.zeros(6, dtype=torch.float64)
        for rows in _chunks(theirs):
            sums += _sums(theirs[rows], base[rows], ours[rows], dtype, changed)
        error, size, rounding, delta, along, kept = sums.tolist()
        explained = rounding
        if self._format_error is not None and not vector:
            explained = max(rounding, self._format_error**2 * size)
        ratio = (error / explained) ** 0.5 if explained else float("inf") if error else 0.0
        relative = (error / size) ** 0.5 if size else float("inf") if error else 0.0
        if not delta:
            return WeightComparison(name, adapted, vector, ratio, relative)
        noise = (error / theirs.numel() / delta) ** 0.5
        again = (self._format_error or 0.0) > _COARSE and _on_grid(base)
        return WeightComparison(
            name, adapted, vector, ratio, relative, 1 + along / delta, 1 + kept / delta, noise, again
        )


def _on_grid(weight: torch.Tensor) -> bool:
    """Return whether blocks of 32 values have so few different ones as only quantised weights have."""
    values = weight.detach().flatten()[: _GRID_BLOCKS * 32]
    blocks = values[: values.numel() // 32 * 32].view(-1, 32).sort(dim=1).values
    if not blocks.numel():
        return False
    different = 1 + (blocks.diff(dim=1) != 0).sum(dim=1)
    return bool(different.float().mean() <= _GRID_DIFFERENT)


def _chunks(tensor: torch.Tensor) -> Iterator[slice]:
    rows = tensor.shape[0]
    step = max(1, _CHUNK * rows // max(1, tensor.numel()))
    for start in range(0, rows, step):
        yield slice(start, start + step)


def _sums(theirs: torch.Tensor, base: torch.Tensor, ours: torch.Tensor, dtype: str, changed: bool) -> torch.Tensor:
    theirs, ours = theirs.float(), ours.float()
    error = ours - theirs
    # The largest power of two in each weight, by its exponent bits.
    power = (ours.contiguous().view(torch.int32) & _EXPONENT).view(torch.float32)
    eps = torch.finfo(_ROUNDED[dtype]).eps if dtype in _ROUNDED else _FLOAT32_EPS
    sums = [error.square().sum(), theirs.square().sum(), power.square().sum() * (eps**2 / 12)]
    if changed:
        delta = theirs - base.float()
        rounded = theirs.to(_ROUNDED[dtype]).float() if dtype in _ROUNDED else theirs
        sums += [delta.square().sum(), (error * delta).sum(), ((rounded - theirs) * delta).sum()]
    else:
        sums += [torch.zeros(())] * 3
    return torch.stack([value.double() for value in sums])
