"""Adapters of kinds other than LoRA, merged by PEFT itself in a model that is in memory whole.

Nothing here knows what such an adapter does. That PEFT's merge is right, which it is not for every kind and model, is
seen from the logits before and after it.
"""

import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneserve.adapters._draft import Draft
from tuneserve.adapters._fields import read_adapter_config
from tuneserve.adapters._names import TensorNames
from tuneserve.adapters._open import PeftAdapter
from tuneserve.checkpoint import TensorSpec
from tuneserve.errors import AdapterError
from tuneserve.hardware import available_memory
from tuneserve.spec import check_buildable

if TYPE_CHECKING:
    import torch

_LITERAL = re.compile(r"[\w.-]*")
# Where the rank is no bound on what is allocated: LoKr takes any rank that is too large to mean a full matrix.
_RANK_FREE = ("LOKR",)
_PROBE_TOKENS = 32
# Float32 sums in another order; the logits of a wrong merge differ by hundreds of times as much.
_TOLERANCE = 1e-3


class PeftMerged:
    """A :class:`~tuneserve.checkpoint.WeightReader` of what PEFT makes of a base, in float32.

    The model is loaded and merged when the first tensor is read, and stays in memory. ``changed`` are the weights of
    the modules that the adapter's file names.
    """

    def __init__(self, draft: Draft, adapter: PeftAdapter) -> None:
        self._weights = draft.weights
        self._config = draft.config
        self._adapter = adapter
        self._lock = threading.Lock()
        self._merged: dict[str, torch.Tensor] = {}
        self.changed = frozenset(name for key in adapter.modules for name in _of_module(draft, key))

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read."""
        return self._weights.files + self._adapter.checkpoint.files

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """The base's tensors."""
        return self._weights.tensors

    def read(self, name: str) -> "torch.Tensor":
        """Return a merged tensor in float32.

        Raises:
            AdapterError: there is too little memory, PEFT cannot load or merge the adapter, or merges it wrongly.
            SpecError: the base would have more layers or experts than any model.
        """
        with self._lock:
            if not self._merged:
                self._merged = self._merge()
        return self._merged[name].clone()

    def _merge(self) -> "dict[str, torch.Tensor]":
        import torch

        self._require_memory()
        check_buildable(self._config)
        with _quiet(), torch.no_grad():
            try:
                return self._merged_by_peft()
            except AdapterError:
                raise
            # Of what makes no sense to them, each class of the two libraries complains in its own way.
            except Exception as error:
                reason = str(error).partition("\n")[0][:300].rstrip(".")
                raise self._refusal(f"PEFT does not merge it ({type(error).__name__}: {reason})") from error

    def _merged_by_peft(self) -> "dict[str, torch.Tensor]":
        import torch
        from peft import PeftModel
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.core_model_loading import revert_weight_conversion

        config = AutoConfig.for_model(**self._config)
        with torch.device("meta"):
            kind: Any = type(AutoModelForCausalLM.from_config(config))
        stored = {name: self._weights.read(name) for name in self._weights.tensors}
        model = kind.from_pretrained(
            None, config=config, state_dict=stored, dtype=torch.float32, attn_implementation="eager"
        )
        tuned = PeftModel.from_pretrained(model.eval(), str(self._adapter.directory)).eval()
        count = min(config.get_text_config().vocab_size, 1 << 16)
        ids = torch.randint(count, (1, _PROBE_TOKENS), generator=torch.Generator().manual_seed(0))
        expected = tuned(input_ids=ids, use_cache=False).logits
        merged = tuned.merge_and_unload(safe_merge=True)
        logits = merged(input_ids=ids, use_cache=False).logits
        difference = float((logits - expected).abs().max() / expected.abs().max())
        if not difference <= _TOLERANCE:
            raise self._refusal(f"PEFT's own merge of it changes the model (its logits by {difference:.1%})")
        return self._by_stored_name(revert_weight_conversion(merged, merged.state_dict()), stored)

    def _by_stored_name(
        self, merged: "Mapping[str, torch.Tensor]", stored: "Mapping[str, torch.Tensor]"
    ) -> "dict[str, torch.Tensor]":
        import torch

        names = TensorNames(stored)
        found = {name: tensor for key, tensor in merged.items() if (name := names.find(key)) is not None}
        for name, before in stored.items():
            if name in self.changed:
                continue
            if name in found and not torch.equal(found[name].to(before.dtype), before):
                raise self._refusal(f"PEFT's merge of it changes {name}, for which its file has nothing")
        if missing := self.changed - found.keys():
            raise self._refusal(f"PEFT's merge of it removes {min(missing)}")
        return {name: found[name] for name in self.changed}

    def _require_memory(self) -> None:
        needed = sum(10 * spec.nbytes for spec in self._weights.tensors.values()) // 2
        if needed > (free := available_memory()):
            raise self._refusal(
                f"PEFT merges it in memory, which takes {needed / 1e9:.1f} GB where {free / 1e9:.1f} GB are free"
            )

    def _refusal(self, reason: str) -> AdapterError:
        return AdapterError(
            f"{self._adapter.directory} is of PEFT type {self._adapter.kind}, and {reason}; serve it with PEFT instead."
        )


def check_bounded(adapter: PeftAdapter) -> None:
    """Check that PEFT will handle the adapter's configuration in bounded time and memory.

    Raises:
        AdapterError: it has regular expressions in it, or a rank that its tensors do not have.
    """
    config = read_adapter_config(adapter.directory)
    largest = max((max(spec.shape, default=0) for spec in adapter.checkpoint.tensors.values()), default=0)
    rank = config.get("r")
    if adapter.kind not in _RANK_FREE and isinstance(rank, int) and rank > largest:
        raise AdapterError(f"{adapter.directory} says rank {rank}, which its tensors do not have; save it again.")
    for key, value in config.items():
        patterns = [value] if key.endswith("modules") and isinstance(value, str) else []
        patterns += list(value) if key.endswith("_pattern") and isinstance(value, dict) else []
        if not all(_LITERAL.fullmatch(pattern) for pattern in patterns):
            raise AdapterError(
                f"{adapter.directory} has a regular expression in {key}, which PEFT would match without a limit of "
                "time; write the module names out instead."
            )


def _of_module(draft: Draft, key: str) -> Iterator[str]:
    """Yield the stored weight and bias of the innermost module that a key of the adapter's file is about."""
    module = key
    while "." in module:
        module = module.rpartition(".")[0]
        found = [name for part in ("weight", "bias") if (name := draft.find(f"{module}.{part}")) is not None]
        if found:
            yield from found
            return


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
