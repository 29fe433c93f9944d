"""From a merged 16-bit directory to a quantised one, in a child process."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneserve.artifacts.calibrated._text import CalibrationText, read_calibration_text
from tuneserve.checkpoint import AtomicDirectory, Checkpoint, open_checkpoint, write_json
from tuneserve.engines import environments
from tuneserve.engines.child import run_child
from tuneserve.errors import EngineError, InputError
from tuneserve.hardware import available_memory
from tuneserve.sources import ResolvedSource, cache_directory, read_config

CALIBRATED = ("awq", "gptq", "fp8_static", "nvfp4")

_JOB = Path(__file__).with_name("_job.py")
# What the job says itself, and where llmcompressor is among the model's layers.
_SAID = re.compile(r"tuneserve: (.{1,200})")
_LAYER = re.compile(r"\((\d{1,6}/\d{1,6})\): (?:Calibrating|Propagating)")
_QUANTISED = re.compile(
    r"\.(?:weight_(?:packed|scale|zero_point|shape|g_idx|global_scale)|input_(?:scale|global_scale))$"
)
# Files of a merged model that the quantised one has of its own.
_OURS = ("config.json", "tuneserve.json", "model.safetensors.index.json")
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_MININTERVAL": "5",
}


@dataclass(frozen=True)
class Calibrator:
    """What calibrates, and on what."""

    environment: environments.Environment
    text: CalibrationText


def open_calibrator(
    methods: Sequence[str],
    source: ResolvedSource,
    *,
    text: Path | None,
    samples: int = 512,
    sequence_length: int = 2048,
    python: Path | None = None,
) -> Calibrator | None:
    """Check all that the calibrated ones of ``methods`` need before any work is done; None if there are none.

    Args:
        methods: canonical names.
        source: what is exported; its tokenizer and chat template are used.
        text: the user's calibration text; see :class:`CalibrationText`.
        samples: how many samples of it to use at most.
        sequence_length: how many tokens of each to use at most.
        python: the user's own interpreter with ``llmcompressor`` instead of the installed environment.

    Raises:
        InputError: the text is missing, useless, or given to methods that need none; or the model has other modalities.
        EngineError: ``llmcompressor`` is not there.
    """
    calibrated = [method for method in methods if method in CALIBRATED]
    if not calibrated:
        if text is not None or python is not None:
            given = "--calibrate-with" if text is not None else "--engine-python"
            raise InputError(
                f"{given} is of no use to {', '.join(methods)}; leave it out, or choose one of {', '.join(CALIBRATED)}."
            )
        return None
    if text is None:
        raise InputError(f"{calibrated[0]} needs text of yours to calibrate on; pass it with --calibrate-with.")
    config = read_config(source.model_dir / "config.json")
    if found := sorted(key for key in ("vision_config", "audio_config") if key in config):
        raise InputError(
            f"{calibrated[0]} calibrates text models only, and {source.name} has a {found[0]}; use a method without "
            "calibration, such as fp8 or int4."
        )
    environment = environments.require("llmcompressor", python)
    read = read_calibration_text(text, source, samples=samples, sequence_length=sequence_length)
    return Calibrator(environment, read)


def run_calibrated(
    method: str,
    merged_dir: Path,
    out_dir: Path,
    calibrator: Calibrator,
    *,
    max_shard_bytes: int,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Quantise the model in ``merged_dir`` with ``method`` into the new directory ``out_dir``.

    The weights are in compressed-tensors layout; configuration, tokenizer and template are those of ``merged_dir``.
    ``out_dir`` appears complete or not at all. ``report`` is told how far it is, in short lines.

    Returns:
        What the manifest should say of how it was made, as JSON-ready values.

    Raises:
        InputError: the model does not fit in memory.
        EngineError: ``llmcompressor`` failed, or wrote other weights than it was given.
    """
    assert method in CALIBRATED
    merged = open_checkpoint(merged_dir)
    _require_memory(merged)
    samples = calibrator.text.samples
    with AtomicDirectory(out_dir) as output, tempfile.TemporaryDirectory(prefix="tuneserve-calibrate-") as scratch:
        facts_file = Path(scratch) / "facts.json"
        request = {
            "method": method,
            "model": str(merged_dir.absolute()),
            "weights": list(merged.tensors),
            "samples": samples,
            "out": str(output.path),
            "facts": str(facts_file),
            "max_shard_bytes": max_shard_bytes,
        }
        _run_job(method, request, calibrator.environment.python, Path(scratch), report)
        facts = read_config(facts_file)
        _require_same_modules(method, merged, open_checkpoint(output.path), facts.get("quantised_modules"))
        _complete(merged_dir, output.path)
    versions = calibrator.environment.versions
    return {
        **facts,
        "versions": {
            name: versions[name] for name in ("llmcompressor", "compressed-tensors", "torch") if name in versions
        },
        "calibration": {
            "file": calibrator.text.path.name,
            "sha256": calibrator.text.sha256,
            "samples": len(samples),
            "tokens": sum(map(len, samples)),
            "sequence_length": calibrator.text.sequence_length,
        },
    }


def _run_job(
    method: str, request: Mapping[str, Any], python: Path, scratch: Path, report: Callable[[str], None]
) -> None:
    request_file = scratch / "request.json"
    request_file.write_text(json.dumps(request))
    logs = cache_directory() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(prefix=f"calibrate-{method}-", suffix=".log", dir=logs)
    log, last = Path(name), ""
    with os.fdopen(number, "w", encoding="utf-8") as file:

        def on_line(line: str) -> None:
            nonlocal last
            file.write(line + "\n")
            said, layer = _SAID.fullmatch(line), _LAYER.match(line)
            text = said[1] if said else f"layers {layer[1]}" if layer else last
            if text != last:
                report(last := text)

        command: list[str | Path] = [python, "-I", _JOB, request_file]
        result = run_child(command, on_line, environment={**os.environ, **_OFFLINE}, directory=scratch)
    if result.code != 0 or not Path(request["facts"]).is_file():
        raise EngineError(
            f"llmcompressor could not make the {method} model ({result.reason}); its log is {log}, and int4 and fp8 "
            "are methods that do without it."
        )
    log.unlink()


def _require_memory(merged: Checkpoint) -> None:
    needed, free = sum(header.nbytes for header in merged.tensors.values()), available_memory()
    if needed > free:
        raise InputError(
            f"calibration holds the whole model in memory, {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; "
            "use a larger machine, or a method without calibration such as fp8 or int4."
        )


def _require_same_modules(method: str, merged: Checkpoint, made: Checkpoint, quantised: object) -> None:
    """Assure that every weight has come out, under its own name, and that those meant to be quantised are."""
    packed = {_QUANTISED.sub("", name) for name in made.tensors if name.endswith((".weight_packed", ".weight_scale"))}
    ours = {name.removesuffix(".weight") for name in merged.tensors}
    theirs = {_QUANTISED.sub("", name).removesuffix(".weight") for name in made.tensors}
    if ours != theirs or len(packed) != quantised:
        odd = min(ours ^ theirs, default="the number of quantised layers")
        raise EngineError(
            f"llmcompressor wrote the {method} model with other weights than the merged one has ({odd}), so nothing "
            "was kept; use a method without calibration, such as fp8 or int4."
        )


def _complete(merged_dir: Path, directory: Path) -> None:
    """Take everything but the weights from the merged model, and add to its configuration how they are quantised."""
    quantisation = read_config(directory / "config.json")["quantization_config"]
    for path in merged_dir.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name not in _OURS:
            shutil.copyfile(path, directory / path.name)
    config = read_config(merged_dir / "config.json")
    write_json(directory / "config.json", {**config, "quantization_config": quantisation})
    for path in directory.glob("*.safetensors"):
        # The library makes them private; the artifact's files are readable like any others.
        path.chmod((directory / "config.json").stat().st_mode)
