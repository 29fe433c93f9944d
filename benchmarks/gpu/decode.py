"""Checks the native engine's GPU kernels against float32, and times the engine: prompts of 32 tokens, 128 new, greedy
unless an option says otherwise.

The model is a directory, as ``benchmarks/export/checkpoint.py`` writes one with random weights: speed depends on the
shape alone. Appends a line per batch size to ``decode.jsonl``, or to the file that ``--out`` names.

    python benchmarks/gpu/decode.py /tmp/llama-8b/base --batch 1 8 32 128 256
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import msgspec
import torch

from tuneserve.adapters import LinearName, MergedModel, linear_shapes, merge_model
from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.model import Decoder, Weights, load_weights
from tuneserve.model._gpu import GpuDecoder
from tuneserve.model._lora import Delta
from tuneserve.native import EngineConfig, NativeCore
from tuneserve.native._batch import make_batch
from tuneserve.native._cache import PagedCache, StepAttention
from tuneserve.native._scheduler import Segment, Step
from tuneserve.native._sequence import Sequence
from tuneserve.sources import open_files
from tuneserve.spec import ModelSpec, read_spec

sys.path.append(str(Path(__file__).parents[1]))
from circumstances import gpu_circumstances

_CHECKED_LAYERS = 3
_PLAIN = msgspec.structs.asdict(SamplingParams(temperature=0))
_CHECKED_PROMPT, _CHECKED_STEPS = 100, 4


class _Sequences:
    """Sequences with blocks of their own, and what decoders say comes after each."""

    def __init__(self, spec: ModelSpec, count: int, dtype: torch.dtype) -> None:
        per_sequence = (_CHECKED_PROMPT + _CHECKED_STEPS) // 16 + 1
        blocks = torch.randperm(count * per_sequence).add(1).view(count, -1).tolist()
        self.cache = PagedCache(spec, count * per_sequence + 1, dtype, torch.device("cuda"))
        self.sequences = []
        generator = torch.Generator().manual_seed(count)
        for index in range(count):
            ids = torch.randint(spec.vocab_size, (_CHECKED_PROMPT,), generator=generator).tolist()
            request = GenerationRequest(id=str(index), prompt_ids=ids, params=SamplingParams())
            self.sequences.append(Sequence(request))
            self.sequences[-1].blocks.extend(blocks[index])

    def logits(self, decoder: Decoder | GpuDecoder) -> torch.Tensor:
        segments = tuple(Segment(one, one.computed, one.pending) for one in self.sequences)
        batch = make_batch(Step(segments, sum(segment.count == 1 for segment in segments)), torch.device("cuda"))
        if isinstance(decoder, GpuDecoder):
            hidden = decoder.forward(batch, self.cache.keys, self.cache.values)
        else:
            hidden = decoder.forward(batch.ids, batch.positions, StepAttention(self.cache, batch))
        for one in self.sequences:
            one.computed = len(one.tokens)
        return decoder.logits(hidden[batch.scored_rows])


class _FirstLayers:
    """A model of its first layers only, for experts are read at once."""

    def __init__(self, whole: MergedModel) -> None:
        self._whole, self.files = whole, whole.files
        names = {name: name.removeprefix("model.layers.").partition(".")[0] for name in whole.tensors}
        self.tensors = {
            name: spec for name, spec in whole.tensors.items()
            if not names[name].isdigit() or int(names[name]) < _CHECKED_LAYERS
        }  # fmt: skip
        self.read, self.storage, self.codes = whole.read, whole.storage, whole.codes


@torch.inference_mode()
def check(model: Path) -> None:
    """Raise unless prompts and cached decoding are nearer to float32 than PyTorch's operations in 16 bits are.

    All three compute with the weights as they are stored; only here are weights in few bits not rounded to 16 first.
    """
    stored = merge_model(*open_files(model, None), [], "float32")
    spec = read_spec(stored.config)
    cut, first = replace(spec, per_layer=spec.per_layer[:_CHECKED_LAYERS]), _FirstLayers(stored)

    def weights(dtype: torch.dtype) -> Weights:
        return load_weights(cut, first, dtype, torch.device("cuda"), deferred=True)

    context = 256
    exact = Decoder(cut, weights(torch.float32).loaded(), context)
    plain = Decoder(cut, weights(torch.bfloat16).loaded(), context)
    for count in (1, 2, 5, 20, 40):
        # The graphs of one are over one cache.
        decoders = exact, plain, GpuDecoder(cut, weights(torch.bfloat16), context, 64)
        runs = [_Sequences(cut, count, decoder.dtype) for decoder in decoders]
        errors: list[list[float]] = [[], []]
        for _ in range(_CHECKED_STEPS):
            expected, *found = (run.logits(decoder) for run, decoder in zip(runs, decoders, strict=True))
            for kept, logits in zip(errors, found, strict=True):
                kept.append(float((logits - expected).norm() / expected.norm()))
            for run in runs:
                for sequence, token in zip(run.sequences, expected.argmax(-1).tolist(), strict=True):
                    sequence.append(token)
        in_16_bits, of_ours = (statistics.mean(kept) for kept in errors)
        print(f"check, batch {count}: relative error {of_ours:.2e}, of PyTorch in 16 bits {in_16_bits:.2e}", flush=True)
        assert of_ours < 1.1 * in_16_bits, "the kernels are less exact than PyTorch's own operations"


def generate(core: NativeCore, batch: int, prompt: int, new: int, sampled: SamplingParams) -> float:
    """Return the seconds that ``batch`` requests take together."""
    params = msgspec.structs.replace(sampled, max_tokens=new)
    produced = 0
    started = time.perf_counter()
    for index in range(batch):
        prompt_ids = torch.randint(10, 40000, (prompt,)).tolist()
        names = core.info.adapters
        adapter = names[index % len(names)] if names else None
        core.add(GenerationRequest(id=str(index), prompt_ids=prompt_ids, params=params, adapter=adapter))
    while not core.idle:
        for output in core.step():
            assert output.failed is None
            produced += output.token is not None
    seconds = time.perf_counter() - started
    assert produced == batch * new
    return seconds


def put_adapters(core: NativeCore, spec: ModelSpec, count: int, rank: int) -> None:
    """Serve so many random adapters of all linear layers, unmerged, in all; sequences take them in turn."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * 0.01

    for index in range(len(core.info.adapters), count):
        deltas: dict[tuple[int, LinearName], tuple[Delta, ...]] = {}
        for (layer, name), (outputs, inputs) in linear_shapes(spec).items():
            ends = {"qkv": (spec.q_size, (spec.q_size + outputs) // 2, outputs), "gate_up": (outputs // 2, outputs)}
            bounds = (0, *ends.get(name, (outputs,)))
            deltas[layer, name] = tuple(
                Delta(first, random(rank, inputs), random(last - first, rank)) for first, last in pairwise(bounds)
            )
        core.put_adapter(str(index), deltas)


def main() -> None:
    """Check, time, append."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 128, 256])
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--weights", default="auto", help="auto, dequantised, int8 or int4, of EngineConfig")
    parser.add_argument("--adapters", type=int, nargs="+", default=[0], help="how many are served unmerged, in turn")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--logprobs", type=int, help="of how many of the likeliest tokens, at each token")
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    options = parser.parse_args()
    config = EngineConfig(
        model_dir=str(options.model),
        context_length=options.context,
        max_running=max(options.batch),
        prefix_cache=False,
        weights=options.weights,
    )
    sampled = SamplingParams(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        repetition_penalty=options.repetition_penalty,
        logprobs=options.logprobs,
    )
    core = NativeCore(config)
    generate(core, 1, options.prompt, 2, sampled)
    cold = time.perf_counter() - started
    shape = json.loads((options.model / "config.json").read_text())
    lines = []
    for adapters in sorted(options.adapters):
        if adapters:
            put_adapters(core, read_spec(shape), adapters, options.rank)
        for batch in options.batch:
            generate(core, batch, options.prompt, 16, sampled)
            seconds = [generate(core, batch, options.prompt, options.new, sampled) for _ in range(options.runs)]
            speed = round(batch * options.new / statistics.median(seconds), 1)
            lines.append({"batch": batch, "adapters": adapters, "tok_per_s": speed})
            print(json.dumps(lines[-1]), flush=True)
    facts = {
        "engine": "tuneserve", "family": shape["model_type"],
        "hidden": shape["hidden_size"], "layers": shape["num_hidden_layers"],
        "stored": shape.get("quantization_config", {}).get("quant_method", "16-bit"), "weights": options.weights,
        "rank": options.rank,
        "sampled": {name: value for name, value in msgspec.structs.asdict(sampled).items() if value != _PLAIN[name]},
        "prompt": options.prompt, "new": options.new, "imports_to_first_token_s": round(cold, 1),
        "weight_gb": round(core.info.weight_bytes / 1e9, 2), **gpu_circumstances(),
    }  # fmt: skip
    with options.out.open("a") as out:
        out.writelines(json.dumps(line | facts) + "\n" for line in lines)
    if not options.no_check:
        del core
        torch.cuda.empty_cache()
        check(options.model)


if __name__ == "__main__":
    main()
