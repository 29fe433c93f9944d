"""Tensors of an adapter that many weights need one after the other."""

import threading
from typing import TYPE_CHECKING

from tuneserve.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch

_KEPT = 4


class Recent:
    """Keeps the few tensors of ``checkpoint`` that were read last, since each expert of a layer needs the same ones."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._tensors: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()

    def read(self, name: str) -> "torch.Tensor":
        """Read a tensor in float32; it must not be changed."""
        with self._lock:
            if name not in self._tensors:
                if len(self._tensors) >= _KEPT:
                    self._tensors.pop(next(iter(self._tensors)))
                self._tensors[name] = self._checkpoint.read(name).float()
            return self._tensors[name]
