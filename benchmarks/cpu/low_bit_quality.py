"""How far weights in few bits take the demo model's token probabilities from those of its 16-bit weights.

The reference is the 16-bit checkpoint computed in float32. Beside it: the native engine with 16-bit weights, with int8
and int4 made at load, on GGUF files and quantised checkpoints made from the same weights, kept in their bits and
dequantised; and llama.cpp on the same GGUF files. Reported are the mean of KL(reference, candidate) in nats over the
positions of a text (this repository's documentation, in windows that begin anew), and how often the likeliest token is
the same.

The demo's checkpoint was itself stored in Q4_1, which Q4_1 therefore gives back without loss. So each of its linear
weights is first moved off that grid, by noise that is uniform over one step of its group of 32; ``--as-it-is`` leaves
that out. Appends one line of JSON per measurement to ``low_bit_quality.jsonl``.

    python benchmarks/cpu/low_bit_quality.py
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tuneserve.artifacts import export
from tuneserve.checkpoint import TensorSpec, open_checkpoint
from tuneserve.checkpoint.quantised.compressed_tensors._encoder import CompressedTensorsEncoder
from tuneserve.checkpoint.quantised.compressed_tensors._schemes import Args, Scheme
from tuneserve.native import EngineConfig
from tuneserve.native._load import load_decoder
from tuneserve.sources import resolve
from tuneserve.text import open_tokenizer

sys.path.append(str(Path(__file__).parents[1]))
from circumstances import circumstances

GGUF = ("gguf:q4_1", "gguf:q4_k_m", "gguf:q8_0")
CHECKPOINTS = ("merged_4bit", "int8")
WINDOW, WINDOWS, BLOCK = 256, 4, 16
W4A16 = "w4a16, groups of 64"
# Where activations in 8 bits are what keeping the bits costs.
DEQUANTISED = ("gguf:q4_1", "gguf:q8_0", "int8", W4A16)
RESULTS = Path(__file__).with_suffix(".jsonl")
REPOSITORY = Path(__file__).parents[2]


def off_the_grid(source: Path, target: Path) -> Path:
    """Copy a checkpoint, each linear weight moved by up to half a step of 4 bits over its group of 32."""
    shutil.copytree(source, target)
    (target / "tuneserve.json").unlink(missing_ok=True)
    generator = torch.Generator().manual_seed(0)
    tensors = load_file(source / "model.safetensors")
    for name, weight in tensors.items():
        if name.endswith("_proj.weight"):
            groups = weight.float().view(len(weight), -1, 32)
            step = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15
            noise = torch.rand(groups.shape, generator=generator) - 0.5
            tensors[name] = (groups + step * noise).view_as(weight).to(weight.dtype)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def w4a16(source: Path, target: Path, group: int = 64) -> Path:
    """Write a compressed-tensors w4a16 checkpoint in groups that divide the demo's columns, which 128 does not."""
    target.mkdir()
    checkpoint = open_checkpoint(source)
    specs = [TensorSpec(name, header.dtype, header.shape) for name, header in checkpoint.tensors.items()]
    scheme = Scheme("pack-quantized", Args(4, "int", "group", group_size=group))
    encoder = CompressedTensorsEncoder(
        scheme, [spec for spec in specs if spec.name.endswith("_proj.weight")], ["lm_head"]
    )
    tensors: dict[str, torch.Tensor] = {}
    for spec in specs:
        names = (part.name for part in encoder.stored(spec))
        tensors |= dict(zip(names, encoder.encode(spec, checkpoint.read(spec.name)), strict=True))
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(encoder.config(config)))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, target)
    return target


def models(directory: Path, source: Path, methods: tuple[str, ...]) -> dict[str, Path]:
    """Return what ``methods`` and w4a16 make of ``source``, made in ``directory`` where it is not there yet."""
    made = directory / "made"
    if not made.is_dir():
        export(source, made, method=list(methods), verify=False)
    packed = made / "w4a16"
    found = {name: made / name.replace(":", "-") for name in methods}
    paths = {name: next(path.glob("*.gguf"), path) for name, path in found.items()}
    return paths | {W4A16: packed if packed.is_dir() else w4a16(source, packed)}


@dataclass
class OneSequence:
    """The step's batch of a single sequence from its beginning."""

    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    starts: torch.Tensor
    block_tables: torch.Tensor

    @classmethod
    def of(cls, ids: torch.Tensor) -> "OneSequence":
        """Return the batch, in blocks from 0 on."""
        places = torch.arange(len(ids))
        starts = torch.tensor([0, len(ids)], dtype=torch.int32)
        tables = torch.arange(len(ids) // BLOCK, dtype=torch.int32)[None]
        return cls(ids, places, places, starts, tables)


def native(path: Path, windows: list[torch.Tensor], **options: Any) -> Iterator[torch.Tensor]:
    """Yield the log-probabilities (positions, vocabulary) of each window."""
    decoder: Any = load_decoder(EngineConfig.of(resolve(path), context_length=WINDOW, cpu_step="compiled", **options))
    spec = decoder.spec
    keys, values = (
        torch.zeros(spec.layers, WINDOW // BLOCK, spec.kv_heads, BLOCK, spec.head_dim, dtype=decoder.dtype)
        for _ in range(2)
    )
    for ids in windows:
        yield decoder.logits(decoder.forward(OneSequence.of(ids), keys, values)).log_softmax(-1)


def llama(path: Path, windows: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Likewise, by llama.cpp."""
    threads = torch.get_num_threads()
    model = llama_cpp.Llama(str(path), n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, verbose=False, n_threads=threads)
    for ids in windows:
        model.reset()
        model.eval(ids.tolist())
        yield torch.from_numpy(np.array(model.scores[: len(ids)], dtype=np.float32)).log_softmax(-1)
    model.close()


def compare(reference: list[torch.Tensor], found: Iterator[torch.Tensor]) -> dict[str, float]:
    """Return what is reported of a candidate."""
    divergences, same = [], []
    for expected, candidate in zip(reference, found, strict=True):
        divergences.append((expected.exp() * (expected - candidate)).sum(-1))
        same.append(expected.argmax(-1) == candidate.argmax(-1))
    kl = torch.cat(divergences)
    return {
        "kl": float(f"{kl.mean():.4g}"),
        # Of the mean, over positions taken as independent.
        "kl_error": float(f"{kl.std() / len(kl) ** 0.5:.2g}"),
        "kl_p99": float(f"{kl.quantile(0.99):.4g}"),
        "same_token": round(torch.cat(same).float().mean().item(), 4),
    }


def about() -> dict[str, Any]:
    """Return what a result depends on."""
    return circumstances() | {"llama_cpp_python": llama_cpp.__version__, "positions": WINDOW * WINDOWS}


def main() -> None:
    """Measure, append, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--as-it-is", action="store_true", help="leave the weights on the grid that they were stored on"
    )
    parser.add_argument("--directory", type=Path, help="keep the models there, and use them if they are there")
    parser.add_argument("--only", help="measure candidates whose name contains this")
    options = parser.parse_args()
    demo = resolve("demo").model_dir
    tokenizer = open_tokenizer(demo, demo)
    text = "\n".join(path.read_text() for path in sorted((REPOSITORY / "docs").glob("*.md")))
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False)[: WINDOW * WINDOWS])
    windows = list(ids.split(WINDOW))
    assert len(windows[-1]) == WINDOW
    with tempfile.TemporaryDirectory() as scratch, RESULTS.open("a", buffering=1) as file:
        directory = options.directory or Path(scratch)
        model = demo if options.as_it_is else directory / "model"
        if not model.is_dir():
            off_the_grid(demo, model)
        paths = models(directory, model, (*GGUF, *CHECKPOINTS))
        reference = list(native(model, windows, dtype="float32"))
        candidates = {
            "native, 16-bit": lambda: native(model, windows),
            "native, int8 at load": lambda: native(model, windows, weights="int8"),
            "native, int4 at load": lambda: native(model, windows, weights="int4"),
        }
        for name, path in paths.items():
            candidates[f"native, {name}"] = lambda path=path: native(path, windows)
            if name in DEQUANTISED:
                candidates[f"native, {name}, dequantised"] = lambda path=path: native(
                    path, windows, weights="dequantised"
                )
            if name in GGUF:
                candidates[f"llama.cpp, {name}"] = lambda path=path: llama(path, windows)
        lines = ["| | KL | p99 | same token |", "| --- | --- | --- | --- |"]
        for name, run in candidates.items():
            if options.only and options.only not in name:
                continue
            result = compare(reference, run())
            about_it = {"candidate": name, "weights_as_stored": options.as_it_is} | result | about()
            file.write(json.dumps(about_it) + "\n")
            lines.append(f"| {name} | {result['kl']:.5f} | {result['kl_p99']:.4f} | {result['same_token']:.1%} |")
            print(lines[-1], flush=True)


if __name__ == "__main__":
    main()
