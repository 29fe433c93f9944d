"""The adapters that the engine serves unmerged, each in a slot of the decoder."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from tuneserve.adapters import read_deltas
from tuneserve.errors import AdapterError, InputError
from tuneserve.hardware import available_memory
from tuneserve.model import load_deltas
from tuneserve.native._decoders import AdaptedDecoder, LoadedDecoder
from tuneserve.native._load import EngineConfig
from tuneserve.native._transformers import TransformersDecoder

# An adapter is in memory as it is read, in float32, and as it is packed.
_BYTES = 12
_LONGEST_NAME = 100


class Adapters:
    """Which adapters there are. Everything but :meth:`read` is for the engine's thread, between steps.

    Attributes:
        slots: of those that requests may give, by name.
        leaving: the slots of those that were asked to go and may still be in use.
    """

    def __init__(self, config: EngineConfig, decoder: LoadedDecoder) -> None:
        self.slots: dict[str, int] = {}
        self.leaving: dict[str, int] = {}
        self._config = config
        self._decoder = decoder

    def read(self, path: Path) -> Any:
        """Read the adapter in a directory, for :meth:`put`; on any thread.

        Raises:
            InputError: it cannot run unmerged on this base.
        """
        decoder, config = self._hosting(), self._config
        if config.tensor_parallel != 1:
            raise InputError(
                "devices that divide a model do not compute adapters unmerged; merge the adapter with 'tuneserve "
                "export', or leave tensor_parallel at 1."
            )
        if config.adapter_dir is not None:
            raise InputError(
                f"the adapter {config.adapter_dir} is folded into the weights, and others need their base as it was; "
                "serve the base, and load each adapter over it."
            )
        base, model_config = config.open_weights()
        assert not isinstance(self._decoder, TransformersDecoder)
        deltas = read_deltas(path, base, model_config, self._decoder.spec)
        needed, free = _BYTES * sum(delta.elements for delta in deltas), available_memory()
        if needed > free:
            raise AdapterError(
                f"loading {path} takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; unload another adapter."
            )
        return decoder.prepare_adapter(load_deltas(deltas, self._decoder.dtype))

    def put(self, name: str, adapter: Any) -> None:
        """Serve an adapter that was read from now on.

        Raises:
            InputError: the name is taken, or none.
        """
        if not 1 <= len(name) <= _LONGEST_NAME:
            raise InputError(f"an adapter's name has 1 to {_LONGEST_NAME} characters, not {len(name)}; choose another.")
        taken = self.slots | self.leaving
        if name in taken:
            raise InputError(f"an adapter is called {name!r} already; unload it first, or choose another name.")
        slot = min(set(range(len(taken) + 1)) - set(taken.values()))
        with torch.inference_mode():
            self._hosting().put_adapter(slot, adapter)
        self.slots[name] = slot

    def leave(self, name: str) -> None:
        """Let requests no longer give ``name``; :meth:`drop` drops it.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self.slots:
            raise InputError(f"no adapter is called {name[:_LONGEST_NAME]!r}; name one that is being served.")
        self.leaving[name] = self.slots.pop(name)

    def drop(self, used: Collection[int]) -> list[str]:
        """Drop those that leave, but not from the slots in use; return their names."""
        gone = [name for name, slot in self.leaving.items() if slot not in used]
        for name in gone:
            with torch.inference_mode():
                self._hosting().drop_adapter(self.leaving.pop(name))
        return gone

    def _hosting(self) -> AdaptedDecoder:
        if not isinstance(self._decoder, AdaptedDecoder):
            raise InputError(
                "what runs through Transformers does not compute adapters unmerged; merge the adapter with "
                "'tuneserve export', or serve it alone."
            )
        return self._decoder
