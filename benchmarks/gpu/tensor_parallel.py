"""Times the native engine on one GPU and on several that share the model, and checks that these compute the same.

Prompts of 32 tokens, 128 new, greedy. The model is a directory, as ``benchmarks/export/checkpoint.py`` writes one with
random weights. Each engine runs in a process of its own, first the one on a single GPU. Then it is checked on
the log-probabilities of random prompts: those of the divided model must be as near to float32 as those of the whole
one. Appends a line per number of GPUs and batch size to ``tensor_parallel.jsonl``, or to the file that ``--out`` names.

    python benchmarks/gpu/tensor_parallel.py /tmp/llama-8b/base --gpus 1 2 --batch 1 8 32 128
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.native import EngineConfig, NativeCore

sys.path.append(str(Path(__file__).parents[1]))
from circumstances import gpu_circumstances

_PROMPTS, _PROMPT_TOKENS, _ANSWER_TOKENS = 6, 96, 16
# Of the mean distance to float32; a sum over GPUs is rounded before it is added, which a fused product is not.
_WORSE = 1.5


def random_prompts(count: int, length: int, vocabulary: int) -> list[list[int]]:
    """Return the same prompts at each call."""
    generator = torch.Generator().manual_seed(count)
    return torch.randint(10, min(vocabulary, 40000), (count, length), generator=generator).tolist()


def run(core: NativeCore, prompts: list[list[int]], **params: Any) -> dict[str, list[Any]]:
    """Return what comes of each prompt."""
    settings = SamplingParams(temperature=0, **params)
    for index, prompt in enumerate(prompts):
        core.add(GenerationRequest(id=str(index), prompt_ids=prompt, params=settings))
    produced: dict[str, list[Any]] = {str(index): [] for index in range(len(prompts))}
    while not core.idle:
        for output in core.step():
            assert output.failed is None, output.failed
            produced[output.id].append(output)
    return produced


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Load, take log-probabilities, time, in this process."""
    started = time.perf_counter()
    config = EngineConfig(
        model_dir=str(options.model), context_length=options.context, max_running=max(options.batch),
        prefix_cache=False, dtype=options.dtype, tensor_parallel=options.ranks,
    )  # fmt: skip
    core = NativeCore(config)
    vocabulary = core.info.vocab_size
    run(core, random_prompts(1, options.prompt, vocabulary), max_tokens=2)
    found: dict[str, Any] = {"first_token_s": round(time.perf_counter() - started, 1)}
    found["weight_gb"] = round(core.info.weight_bytes / 1e9, 2)
    scored = run(
        core, random_prompts(_PROMPTS, _PROMPT_TOKENS, vocabulary), max_tokens=_ANSWER_TOKENS, prompt_logprobs=0
    )
    found["logprobs"] = [[one.logprob for one in outputs[0].prompt_logprobs] for outputs in scored.values()]
    found["answers"] = [[output.token for output in outputs] for outputs in scored.values()]
    found["tok_per_s"] = {}
    for batch in options.batch if options.dtype != "float32" else []:
        prompts = random_prompts(batch, options.prompt, vocabulary)
        run(core, prompts, max_tokens=16)
        seconds = []
        for _ in range(options.runs):
            begun = time.perf_counter()
            run(core, prompts, max_tokens=options.new)
            seconds.append(time.perf_counter() - begun)
        found["tok_per_s"][batch] = round(batch * options.new / statistics.median(seconds), 1)
        print(f"{options.ranks} GPUs, batch {batch}: {found['tok_per_s'][batch]} tok/s", file=sys.stderr, flush=True)
    return found


def in_a_process(options: argparse.Namespace, ranks: int, dtype: str) -> dict[str, Any]:
    """Return what :func:`measure` finds in a process of its own."""
    command = [
        sys.executable, __file__, str(options.model), "--ranks", str(ranks), "--dtype", dtype,
        "--prompt", str(options.prompt), "--new", str(options.new), "--runs", str(options.runs),
        "--context", str(options.context), "--batch", *map(str, options.batch),
    ]  # fmt: skip
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def distance(some: list[list[float]], others: list[list[float]]) -> float:
    """Return the mean distance of log-probabilities, in nats."""
    pairs = [(a, b) for one, other in zip(some, others, strict=True) for a, b in zip(one, other, strict=True)]
    return statistics.mean(abs(a - b) for a, b in pairs)


def same_tokens(some: list[list[int]], others: list[list[int]]) -> float:
    """Return the share of tokens up to and with the first that differs, which all after it depend on."""
    same = total = 0
    for one, other in zip(some, others, strict=True):
        for a, b in zip(one, other, strict=True):
            total += 1
            same += a == b
            if a != b:
                break
    return same / total


def main() -> None:
    """Measure each in turn, compare, append, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--dtype", default="auto", help=argparse.SUPPRESS)
    parser.add_argument("--ranks", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    options = parser.parse_args()
    if options.ranks is not None:
        print(json.dumps(measure(options)), flush=True)
        # Without taking leave of the other ranks in order, for which these would have to be asked.
        os._exit(0)
    runs = {gpus: in_a_process(options, gpus, "auto") for gpus in options.gpus}
    shape = json.loads((options.model / "config.json").read_text())
    facts = {
        "hidden": shape["hidden_size"], "layers": shape["num_hidden_layers"], "prompt": options.prompt,
        "new": options.new, "nccl": ".".join(map(str, torch.cuda.nccl.version())), **gpu_circumstances(),
    }  # fmt: skip
    checks: dict[int, dict[str, float]] = {gpus: {} for gpus in runs}
    if not options.no_check:
        exact = in_a_process(options, 1, "float32")
        for gpus, found in runs.items():
            checks[gpus] = {
                "nats_from_float32": distance(found["logprobs"], exact["logprobs"]),
                "same_tokens": same_tokens(found["answers"], next(iter(runs.values()))["answers"]),
            }
    with options.out.open("a") as out:
        for gpus, found in runs.items():
            own = {key: found[key] for key in ("first_token_s", "weight_gb")}
            for batch, speed in found["tok_per_s"].items():
                line = {"gpus": gpus, "batch": int(batch), "tok_per_s": speed, **own, **checks[gpus], **facts}
                out.write(json.dumps(line) + "\n")
    print("| GPUs | first token s | " + " | ".join(map(str, options.batch)) + " | nats from float32 | same tokens |")
    for gpus, found in runs.items():
        speeds = " | ".join(str(found["tok_per_s"][str(batch)]) for batch in options.batch)
        check = " | ".join(f"{value:.4f}" for value in checks[gpus].values())
        print(f"| {gpus} | {found['first_token_s']} | {speeds} | {check} |")
    errors = [check["nats_from_float32"] for check in checks.values() if check]
    assert all(one <= _WORSE * errors[0] for one in errors), "the divided model is further from float32 than the whole"


if __name__ == "__main__":
    main()
