"""Adapted modules compared one by one, against the error that rounding the weights once explains.

Rounding w to a grid of spacing s(w) errs like a uniform variable: variance s(w)²/12. For inputs X of shape (tokens, in)
the squared output error summed over tokens and outputs is then expected to be Σ_j (Σ_t x_tj²)(Σ_i s(w_ij)²) / 12. The
root of measured over expected is near 1 for a right merge in any 16-bit format, whatever the model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from tuneserve.parity._report import ModuleParity

_PREFIX = "base_model.model."


@dataclass
class ModuleComparison:
    """Sums over probes of the measured and the expected squared error per module."""

    weights: dict[str, torch.Tensor]
    dtype: torch.dtype
    measured: dict[str, float] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def watching(self, reference: torch.nn.Module) -> Iterator[None]:
        """Compare during the reference's forward passes: each adapted module's input also goes through ours."""
        handles = [
            module.register_forward_hook(self._hook(name))
            for name, module in _adapted(reference).items()
            if name in self.weights
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def result(self) -> ModuleParity | None:
        """Return the worst module, None if nothing was compared."""
        errors = {name: _ratio(self.measured[name], self.expected[name]) for name in self.measured}
        if not errors:
            return None
        worst = max(errors, key=lambda name: errors[name])
        return ModuleParity(len(errors), worst, errors[worst])

    def _hook(self, name: str) -> "_Hook":
        return _Hook(self, name)


@dataclass
class _Hook:
    comparison: ModuleComparison
    name: str

    def __call__(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        sums, weight = self.comparison, self.comparison.weights[self.name]
        x = inputs[0].flatten(0, -2)
        bias = getattr(module, "bias", None)
        ours = torch.nn.functional.linear(x, weight, bias)
        spacing = torch.finfo(sums.dtype).eps * torch.exp2(weight.abs().log2().floor())
        measured = (ours - output.flatten(0, -2)).double().square().sum()
        expected = (x.double().square().sum(0) * spacing.double().square().sum(0)).sum() / 12
        sums.measured[self.name] = sums.measured.get(self.name, 0.0) + float(measured)
        sums.expected[self.name] = sums.expected.get(self.name, 0.0) + float(expected)


def compare_modules(reference: torch.nn.Module, candidate: torch.nn.Module, dtype: torch.dtype) -> ModuleComparison:
    """Prepare the comparison of ``reference``'s adapted linear modules with the same modules of ``candidate``.

    ``dtype`` is the one that the candidate's weights were rounded to.
    """
    weights = {}
    for name in _adapted(reference):
        module = _submodule(candidate, name)
        if isinstance(module, torch.nn.Linear):
            weights[name] = module.weight.detach()
    return ModuleComparison(weights, dtype)


def _adapted(reference: torch.nn.Module) -> dict[str, torch.nn.Module]:
    from peft.tuners.lora import Linear

    return {
        name.removeprefix(_PREFIX): module for name, module in reference.named_modules() if isinstance(module, Linear)
    }


def _submodule(model: torch.nn.Module, name: str) -> torch.nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _ratio(measured: float, expected: float) -> float:
    return float((measured / expected) ** 0.5) if expected else float("inf") if measured else 0.0
