"""The importance matrix: how much each column of a weight matters on some text."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Imatrix:
    """``values`` by GGUF tensor: the mean square of each input, float32 of (columns,) or (experts, columns)."""

    values: Mapping[str, torch.Tensor]
