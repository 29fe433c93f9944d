"""Initialisations that move the strongest part of each weight into the adapter and train beside the rest."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuneserve.adapters._edits import Blocks
from tuneserve.checkpoint import torch_dtype

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Residual:
    """What PEFT leaves of a base weight when it loads such an adapter: W - scaling * B0 @ A0.

    For "pissa" (arXiv:2404.02948) the product is the best approximation of W of that rank; for "olora"
    (arXiv:2406.01775), scaling times the first columns of Q and rows of R, of W as it is stored. The rest is rounded to
    the base's ``dtype``, as it was while the adapter was trained.
    """

    kind: str
    rank: int
    scaling: float
    dtype: str
    transposed: bool

    def apply(self, blocks: Blocks) -> Blocks:
        """See :class:`~tuneserve.adapters._edits.Edit`."""
        import torch

        weight = torch.cat([block.clone() for _, block in blocks()])
        # In PEFT's order of operations, so that the rounding below falls the same way.
        if self.kind == "pissa":
            u, s, vh = torch.linalg.svd(weight.T if self.transposed else weight, full_matrices=False)
            roots = (s[: self.rank] / self.scaling).sqrt()
            part = self.scaling * (u[:, : self.rank] * roots) @ (roots[:, None] * vh[: self.rank])
            weight -= part.T if self.transposed else part
        else:
            q, r = torch.linalg.qr(weight)
            weight -= self.scaling * q[:, : self.rank] @ r[: self.rank]
        rounded = weight.to(torch_dtype(self.dtype))

        def rest() -> Iterator[tuple[int, "torch.Tensor"]]:
            for start, block in blocks():
                yield start, block.copy_(rounded[start : start + len(block)])

        return rest
