"""What turns the weights of a 16-bit model into the tensors of a quantised checkpoint."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from tuneserve.checkpoint._tensor import TensorSpec

if TYPE_CHECKING:
    import torch


class Encoder(Protocol):
    """One way of storing weights; made for one model, it knows which of its tensors it quantises."""

    def stored(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """Return what the weight ``spec`` is stored as; itself alone where it is left as it is. Reads no data."""

    def encode(self, spec: TensorSpec, tensor: "torch.Tensor") -> tuple["torch.Tensor", ...]:
        """Return the tensors that :meth:`stored` names, in its order, each contiguous; ``tensor`` is not changed."""

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the ``config.json`` of the quantised model, given that of the 16-bit one."""


@runtime_checkable
class ObservingEncoder(Encoder, Protocol):
    """An encoder that must see some weights before it encodes any, because what it stores depends on several."""

    @property
    def observed(self) -> tuple[str, ...]:
        """The weights to show to :meth:`observe`, each once, as they will be given to :meth:`encode`."""

    def observe(self, name: str, tensor: "torch.Tensor") -> None:
        """Take from a weight what must be known of it."""
