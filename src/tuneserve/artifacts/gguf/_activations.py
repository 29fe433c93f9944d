"""Sums of squares of what goes into each weight of a Transformers model, by the names of GGUF."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tuneserve.errors import SpecError
from tuneserve.spec import gguf_parts

_PREFIX = "base_model.model."
_WRAPPERS = (".base_layer", ".modules_to_save.default")


class Activations:
    """What the weights of a model of ``family`` got to see so far.

    A weight's rows may be reordered in a GGUF file, its columns never are, so that sums fit as they are.
    """

    def __init__(self, family: str) -> None:
        self._family = family
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, torch.Tensor] = {}

    @contextmanager
    def watching(self, model: torch.nn.Module) -> Iterator[None]:
        """Add up during the forward passes of ``model``, which may have PEFT's layers in it.

        Raises:
            SpecError: the model has experts whose inputs cannot be seen.
        """
        handles = []
        try:
            for name, module in model.named_modules():
                if hasattr(module, "base_layer") or ".lora_" in name or ".original_module" in name:
                    continue
                plain = name.removeprefix(_PREFIX)
                for wrapper in _WRAPPERS:
                    plain = plain.replace(wrapper, "")
                if (hook := self._hook(plain, module)) is not None:
                    handles.append(module.register_forward_pre_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def means(self) -> dict[str, torch.Tensor]:
        """Return the mean squares, float32; experts that saw nothing weigh all columns alike."""
        found = {}
        for name, sums in self._sums.items():
            counts = self._counts[name]
            means = (sums / counts.clamp(min=1).unsqueeze(-1)).float()
            found[name] = torch.where(counts.unsqueeze(-1) == 0, torch.ones_like(means), means)
        return found

    def _hook(self, name: str, module: torch.nn.Module) -> Callable[[torch.nn.Module, Any], None] | None:
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.nn.Parameter) and weight.ndim == 2 and not isinstance(module, torch.nn.Embedding):
            targets = self._targets(f"{name}.weight")
            return lambda _, inputs: self._add(targets, inputs[0]) if targets else None
        if name.endswith(".experts") and isinstance(getattr(module, "down_proj", None), torch.Tensor):
            if self._family == "gpt_oss":
                raise SpecError(
                    "the inputs of gpt-oss's experts cannot be seen from outside; "
                    "use a GGUF type that needs no importance matrix."
                )
            gate_up, down = self._targets(f"{name}.gate_up_proj"), self._targets(f"{name}.down_proj")
            return lambda experts, inputs: self._add_experts(gate_up, down, experts, *inputs[:2])
        return None

    def _targets(self, weight: str) -> tuple[str, ...]:
        names = (part.name for part in gguf_parts(self._family, weight))
        return tuple(name for name in names if name.startswith("blk."))

    def _add(self, names: tuple[str, ...], inputs: torch.Tensor) -> None:
        rows = inputs.detach().flatten(0, -2)
        self._accumulate(names, rows.float().square().sum(0, dtype=torch.float64), torch.tensor(len(rows)))

    def _add_experts(
        self, gate_up: tuple[str, ...], down: tuple[str, ...], experts: Any, states: torch.Tensor, chosen: torch.Tensor
    ) -> None:
        """Repeat what the experts do with ``states`` (tokens, hidden), each of which goes to those ``chosen``."""
        states = states.detach()
        count = len(experts.down_proj)
        into = torch.zeros(count, states.shape[-1], dtype=torch.float64)
        between = torch.zeros(count, experts.down_proj.shape[-1], dtype=torch.float64)
        counts = torch.zeros(count, dtype=torch.int64)
        for number in range(count):
            mine = states[(chosen == number).any(-1)]
            gate, up = torch.nn.functional.linear(mine, experts.gate_up_proj[number]).chunk(2, dim=-1)
            inner = experts.act_fn(gate) * up
            into[number] = mine.float().square().sum(0, dtype=torch.float64)
            between[number] = inner.detach().float().square().sum(0, dtype=torch.float64)
            counts[number] = len(mine)
        self._accumulate(gate_up, into, counts)
        self._accumulate(down, between, counts)

    def _accumulate(self, names: tuple[str, ...], sums: torch.Tensor, counts: torch.Tensor) -> None:
        for name in names:
            self._sums[name] = self._sums.get(name, torch.zeros_like(sums)) + sums
            self._counts[name] = self._counts.get(name, torch.zeros_like(counts)) + counts
