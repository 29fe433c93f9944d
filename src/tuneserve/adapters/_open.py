"""From an adapter directory to an opened adapter: its configuration and its file's header, no data."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tuneserve.adapters._config import LORA, LoraConfig, parse_lora_config
from tuneserve.adapters._fields import CONFIG_FILE, read_adapter_config
from tuneserve.adapters._keys import Keys, sort_keys
from tuneserve.adapters._recent import Recent
from tuneserve.adapters._rules import Rules
from tuneserve.checkpoint import Checkpoint, open_safetensors
from tuneserve.errors import AdapterError, CheckpointError

WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLE_FILE = "adapter_model.bin"
_FLOATS = ("F32", "F16", "BF16", "F64")
_LISTED = 8
# They change what the model is given, not its weights.
_PROMPTS = (
    "ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING",
)  # fmt: skip
_ROUTED = ("POLY", "XLORA")


@dataclass(frozen=True)
class LoraAdapter:
    """An opened LoRA adapter; ``checkpoint`` reads its file."""

    directory: Path
    config: LoraConfig
    checkpoint: Checkpoint
    keys: Keys

    @cached_property
    def rules(self) -> Rules:
        """What the configuration means for modules."""
        return Rules(self.config)

    @cached_property
    def recent(self) -> Recent:
        """Reads those of the file's tensors that several weights share."""
        return Recent(self.checkpoint)

    @property
    def kind(self) -> str:
        """What PEFT calls this kind of adapter."""
        return "DoRA" if self.config.use_dora else "rsLoRA" if self.config.use_rslora else "LoRA"

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules with a delta, as paths in the model that was trained."""
        return tuple(module.replace(".base_layer", "") for module in self.keys.pairs)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Every rank that the configuration gives to a module."""
        return tuple(sorted({self.rules.rank(module) for module in self.modules}))


@dataclass(frozen=True)
class PeftAdapter:
    """An opened adapter of another kind, which PEFT itself merges."""

    directory: Path
    kind: str
    checkpoint: Checkpoint

    @property
    def modules(self) -> tuple[str, ...]:
        """The parameters that the file holds something for, as paths in the model that was trained."""
        return tuple(name.removeprefix("base_model.model.") for name in self.checkpoint.tensors)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Empty: such adapters have no rank, or not in the same sense."""
        return ()


Adapter = LoraAdapter | PeftAdapter


@dataclass(frozen=True)
class WeightedAdapter:
    """An adapter, and the factor of what it changes."""

    adapter: Adapter
    weight: float = 1.0


def open_adapter(directory: Path) -> Adapter:
    """Open the adapter in ``directory``, reading its configuration and its file's header.

    Raises:
        AdapterError: it is pickled, malformed, has anything that is not understood, or is of a kind that cannot become
            part of the weights.
    """
    config = read_adapter_config(directory)
    kind = config.get("peft_type")
    if not isinstance(kind, str):
        raise AdapterError(f"{directory / CONFIG_FILE} has no peft_type; save the adapter again.")
    if kind in _PROMPTS:
        raise AdapterError(
            f"{directory} is of PEFT type {kind}, which trains inputs rather than weights, so that nothing can be "
            "merged; serve it with PEFT."
        )
    if kind in _ROUTED:
        raise AdapterError(
            f"{directory} is of PEFT type {kind}, which mixes adapters anew for each input, so that it cannot be "
            "merged; serve it with PEFT."
        )
    if kind != LORA:
        return PeftAdapter(directory, kind, _open_weights(directory))
    lora = parse_lora_config(config, directory / CONFIG_FILE)
    checkpoint = _open_weights(directory)
    keys = sort_keys(checkpoint.tensors)
    problems = keys.problems + [
        f"{header.name} is {header.dtype}, not a 16- or 32-bit float"
        for header in checkpoint.tensors.values()
        if header.dtype not in _FLOATS
    ]
    if not keys.pairs and not keys.tokens and not keys.saved:
        problems.append("it has no LoRA tensors")
    if problems:
        raise AdapterError(f"{directory / WEIGHTS_FILE} cannot be merged: {listed(problems)}; save the adapter again.")
    return LoraAdapter(directory, lora, checkpoint, keys)


def listed(problems: list[str]) -> str:
    """Join problems into one clause, leaving out what would make it too long to read."""
    more = f" and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    return "; ".join(problem[:300] for problem in problems[:_LISTED]) + more


def _open_weights(directory: Path) -> Checkpoint:
    path = directory / WEIGHTS_FILE
    if not path.exists():
        if (directory / _PICKLE_FILE).exists():
            raise AdapterError(
                f"{directory / _PICKLE_FILE} is pickled, which is never loaded because it can run code; "
                "save the adapter as safetensors."
            )
        raise AdapterError(f"{path} is missing; point to the directory that training wrote.")
    try:
        return open_safetensors(path)
    except CheckpointError as error:
        raise AdapterError(str(error)) from None
