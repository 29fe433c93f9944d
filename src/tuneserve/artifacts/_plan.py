"""What an export will write, decided from headers and configurations alone."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tuneserve._version import __version__
from tuneserve.adapters import Combination, MergedModel
from tuneserve.artifacts._format import Format
from tuneserve.artifacts.calibrated import CALIBRATED, Calibrator
from tuneserve.sources import ResolvedSource

MERGED = "merged_16bit"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Blend:
    """The factors of several adapters (or of one, if it is not 1), and how they become one."""

    weights: tuple[float, ...]
    combination: Combination


@dataclass(frozen=True)
class ExportPlan:
    """Everything an export reads and writes.

    ``methods`` are those asked for, ``adapter_dirs`` all the adapters that are merged, ``blend`` how,
    where it is not just one as it is. ``formats`` has what the pass over
    the weights makes: each method's artifact by its name, but for the calibrated ones, which are made from the merged
    16-bit model; that one is then among the formats, whether it was asked for or not.
    """

    source: ResolvedSource
    adapter_dirs: tuple[Path, ...]
    blend: Blend | None
    model: MergedModel
    methods: tuple[str, ...]
    formats: Mapping[str, Format]
    calibrator: Calibrator | None
    max_shard_bytes: int

    @property
    def pass_bytes(self) -> int:
        """Bytes of the merged model, all of which pass through memory once."""
        return sum(spec.nbytes for spec in self.model.tensors.values())

    @property
    def output_bytes(self) -> Mapping[str, int]:
        """Bytes of each format's weight files, exactly."""
        return {
            method: sum(planned.size for planned in format_.files.values()) for method, format_ in self.formats.items()
        }

    @property
    def calibrated(self) -> tuple[str, ...]:
        """Those of the methods that are made from the merged model afterwards."""
        return tuple(method for method in self.methods if method in CALIBRATED)

    def directory(self, root: Path, method: str) -> Path:
        """Return where the artifact of ``method`` goes: ``root`` itself if it is the only one."""
        if method not in self.methods:
            return root / f".{method}"
        return root if len(self.methods) == 1 else root / method.replace(":", "-")

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides what the pass writes; files go by their size and time."""
        stats = {str(path.resolve()): path.stat() for path in self.inputs}
        inputs = {name: (status.st_size, status.st_mtime_ns) for name, status in stats.items()}
        outputs = {
            method: {
                name: (hashlib.sha256(planned.header).hexdigest(), planned.size)
                for name, planned in format_.files.items()
            }
            for method, format_ in self.formats.items()
        }
        decided = [__version__, inputs, outputs, self.methods, self.model.config]
        return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()

    @property
    def inputs(self) -> Sequence[Path]:
        """Every file whose content decides what is written."""
        found = [*self.model.files, self.source.model_dir / "config.json"]
        for directory in self.adapter_dirs:
            found += [path for name in _ADAPTER_FILES if (path := directory / name).is_file()]
        return list(dict.fromkeys(found))

    @property
    def adapters(self) -> list[dict[str, Any]]:
        """Return the adapters by name with their factors, as JSON-ready values."""
        weights = self.blend.weights if self.blend else (1.0,) * len(self.adapter_dirs)
        return [{"name": path.name, "weight": weight} for path, weight in zip(self.adapter_dirs, weights, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready values."""
        return {
            "source": self.source.name,
            "methods": list(self.methods),
            "weights": {name: [spec.dtype, list(spec.shape)] for name, spec in self.model.tensors.items()},
            "merged": sorted(self.model.changed),
            "adapters": self.adapters,
            "outputs": {
                method: {name: planned.size for name, planned in format_.files.items()}
                for method, format_ in self.formats.items()
            },
            "output_bytes": sum(self.output_bytes.values()),
        }
