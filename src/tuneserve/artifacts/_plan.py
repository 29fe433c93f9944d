"""What an export will write, decided from headers and configurations alone."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tuneserve._version import __version__
from tuneserve.adapters import MergedModel
from tuneserve.artifacts._format import Format
from tuneserve.sources import ResolvedSource


@dataclass(frozen=True)
class ExportPlan:
    """Everything an export reads and writes; ``formats`` holds each method's artifact by its name."""

    source: ResolvedSource
    model: MergedModel
    formats: Mapping[str, Format]

    @property
    def pass_bytes(self) -> int:
        """Bytes of the merged model, all of which pass through memory once."""
        return sum(spec.nbytes for spec in self.model.tensors.values())

    @property
    def output_bytes(self) -> Mapping[str, int]:
        """Bytes of each method's weight files, exactly."""
        return {
            method: sum(planned.size for planned in format_.files.values()) for method, format_ in self.formats.items()
        }

    def directory(self, root: Path, method: str) -> Path:
        """Return where the artifact of ``method`` goes: ``root`` itself if it is the only one."""
        return root if len(self.formats) == 1 else root / method.replace(":", "-")

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides what is written; files go by their size and time."""
        inputs = [
            (str(path.resolve()), status.st_size, status.st_mtime_ns)
            for path in self.inputs
            for status in (path.stat(),)
        ]
        outputs = {
            method: {
                name: (hashlib.sha256(planned.header).hexdigest(), planned.size) for name, planned in f.files.items()
            }
            for method, f in self.formats.items()
        }
        decided = [__version__, inputs, outputs, self.model.config]
        return hashlib.sha256(json.dumps(decided, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def inputs(self) -> Sequence[Path]:
        """Every file whose content decides what is written."""
        found = [*self.model.files, self.source.model_dir / "config.json"]
        if self.source.adapter_dir is not None:
            names = ("adapter_config.json", "adapter_model.safetensors")
            found += [path for name in names if (path := self.source.adapter_dir / name).is_file()]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready values."""
        return {
            "source": self.source.name,
            "weights": {name: [spec.dtype, list(spec.shape)] for name, spec in self.model.tensors.items()},
            "merged": sorted(self.model.changed),
            "outputs": {
                method: {name: planned.size for name, planned in format_.files.items()}
                for method, format_ in self.formats.items()
            },
            "output_bytes": sum(self.output_bytes.values()),
        }
