"""Model directories of safetensors, in 16 bits or through an encoder."""

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneserve.artifacts._format import Format, Piece, PlannedFile
from tuneserve.artifacts._side_files import copy_files
from tuneserve.checkpoint import TensorSpec, safetensors_header, write_json
from tuneserve.checkpoint.quantised import Encoder, ObservingEncoder

if TYPE_CHECKING:
    import torch

DEFAULT_SHARD_BYTES = 5_000_000_000
_INDEX_FILE = "model.safetensors.index.json"


class SafetensorsFormat(Format):
    """Shards of whole weights, none larger than ``max_shard_bytes`` unless a single weight is.

    Args:
        tensors: the merged model's weights in the order of the pass.
        config: its ``config.json``.
        copies: files that go beside it as they are.
        encoder: stores the weights in fewer bits; None stores them as they are.
    """

    def __init__(
        self,
        tensors: Mapping[str, TensorSpec],
        config: Mapping[str, Any],
        copies: tuple[Path, ...],
        encoder: Encoder | None,
        max_shard_bytes: int,
    ) -> None:
        self._tensors = tensors
        self._encoder = encoder
        self._copies = copies
        self._config = encoder.config(config) if encoder else dict(config)
        self._shards = _named(_divide([self._stored(spec) for spec in tensors.values()], max_shard_bytes))
        headers = {file: safetensors_header(specs) for file, specs in self._shards.items()}
        self._places: dict[str, Piece] = {}
        self._sizes: dict[str, int] = {}
        for file, specs in self._shards.items():
            offset = len(headers[file])
            for spec in specs:
                self._places[spec.name] = Piece(file, offset, spec.nbytes)
                offset += spec.nbytes
            self._sizes[file] = offset
        self._files = {file: PlannedFile(header, self._sizes[file]) for file, header in headers.items()}

    @property
    def files(self) -> Mapping[str, PlannedFile]:
        """The shards by name."""
        return self._files

    @property
    def observed(self) -> tuple[str, ...]:
        """The weights that the encoder must see first."""
        return self._encoder.observed if isinstance(self._encoder, ObservingEncoder) else ()

    def observe(self, name: str, tensor: "torch.Tensor") -> None:
        """Show a weight to the encoder."""
        assert isinstance(self._encoder, ObservingEncoder)
        self._encoder.observe(name, tensor)

    def pieces(self, name: str) -> tuple[Piece, ...]:
        """Return where the bytes made from the weight ``name`` go."""
        return tuple(self._places[spec.name] for spec in self._stored(self._tensors[name]))

    def copies(self, name: str) -> bool:
        """Return whether the weight is stored as it is."""
        spec = self._tensors[name]
        return self._stored(spec) == (spec,)

    def encode(self, name: str, tensor: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
        """Return what is stored of the weight ``name``, which is not stored as it is."""
        assert self._encoder is not None
        return self._encoder.encode(self._tensors[name], tensor)

    def write_side_files(self, directory: Path) -> None:
        """Write the index, the configuration and the copies."""
        if len(self._shards) > 1:
            total = sum(spec.nbytes for specs in self._shards.values() for spec in specs)
            weight_map = {spec.name: file for file, specs in self._shards.items() for spec in specs}
            write_json(directory / _INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
        write_json(directory / "config.json", self._config)
        copy_files(self._copies, directory)

    def candidate(self, directory: Path) -> Path | None:
        """Return the directory."""
        return directory

    def _stored(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        return self._encoder.stored(spec) if self._encoder else (spec,)


def _divide(weights: list[tuple[TensorSpec, ...]], limit: int) -> list[list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for specs in weights:
        nbytes = sum(spec.nbytes for spec in specs)
        if shards[-1] and filled + nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1] += specs
        filled += nbytes
    return shards


def _named(shards: list[list[TensorSpec]]) -> dict[str, list[TensorSpec]]:
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {
        f"model-{n:05d}-of-{len(shards):05d}.safetensors": specs for n, specs in zip(count(1), shards, strict=False)
    }
