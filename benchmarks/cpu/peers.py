"""vLLM's CPU build and llama.cpp beside the native engine, on the demo model in one run; see ``decode.py``.

vLLM (``tuneserve engines install vllm``) serves the 16-bit weights in its own environment, llama.cpp a GGUF file that
is named with ``--gguf``, such as the demo's own in Q4_1, one sequence at a time. Each is a process of its own, and each
number the best of several runs, prompts of 32 random tokens and 128 new ones, prefill included. Appends one line of
JSON per measurement to ``peers.jsonl``.

    python benchmarks/cpu/peers.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from tuneserve.engines import environments
from tuneserve.sources import resolve

sys.path.append(str(Path(__file__).parents[1]))
from circumstances import circumstances

BATCHES = (1, 8, 16, 64)
RUNS = 3
RESULTS = Path(__file__).with_suffix(".jsonl")
_RATES = """
import json, random, sys, time
def rates(generate, batches, runs):
    for batch in batches:
        best = 1e9
        for run in range(runs + 1):
            draw = random.Random(1000 * batch + run)
            prompts = [[draw.randint(100, 40000) for _ in range(32)] for _ in range(batch)]
            began = time.perf_counter()
            count = generate(prompts)
            took = time.perf_counter() - began
            assert count == batch * 128, count
            best = min(best, took) if run else best
        print("RATE " + json.dumps([batch, batch * 128 / best]), flush=True)
model, batches, runs = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
"""
_VLLM = """
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    llm = LLM(model, dtype="bfloat16", max_model_len=512, enable_prefix_caching=False)
    params = SamplingParams(temperature=0, max_tokens=128, ignore_eos=True)
    def generate(prompts):
        outputs = llm.generate([{"prompt_token_ids": one} for one in prompts], params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)
    rates(generate, batches, runs)
"""
_LLAMA = """
import llama_cpp, os
llm = llama_cpp.Llama(model, n_ctx=512, n_threads=int(os.environ["THREADS"]), verbose=False)
def generate(prompts):
    llm.reset()
    tokens = llm.generate(prompts[0], temp=0.0, reset=True)
    return sum(1 for _, token in zip(range(128), tokens))
rates(generate, [1], runs)
"""
_NATIVE = """
from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.native import EngineConfig, NativeCore
from tuneserve.sources import resolve
core = NativeCore(EngineConfig.of(resolve(model), context_length=512, prefix_cache=False, weights=sys.argv[4]))
def generate(prompts):
    for index, prompt in enumerate(prompts):
        params = SamplingParams(temperature=0, max_tokens=128)
        core.add(GenerationRequest(id=str(index), prompt_ids=prompt, params=params))
    count = 0
    while not core.idle:
        count += len(core.step())
    return count
rates(generate, batches, runs)
"""


def rates(python: Path, code: str, model: str, *more: str) -> dict[int, float]:
    """Return tokens per second by batch size."""
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1",
        "THREADS": str(torch.get_num_threads()),
    }  # fmt: skip
    script = RESULTS.with_suffix(".scratch.py")
    script.write_text(_RATES + code)
    try:
        result = subprocess.run(
            [python, script, model, json.dumps(BATCHES), str(RUNS), *more],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        script.unlink()
    found = [json.loads(line[5:]) for line in result.stdout.splitlines() if line.startswith("RATE ")]
    if not found:
        raise SystemExit(result.stderr[-2000:])
    return {batch: round(rate, 1) for batch, rate in found}


def main() -> None:
    """Measure in turn and append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True)
    options = parser.parse_args()
    own, demo = Path(sys.executable), str(resolve("demo").model_dir)
    vllm = environments.require("vllm")
    about = circumstances()
    contenders = [
        ("native, 16-bit", lambda: rates(own, _NATIVE, "demo", "auto")),
        (f"vLLM {vllm.version}, bf16", lambda: rates(vllm.python, _VLLM, demo)),
        ("native, int8", lambda: rates(own, _NATIVE, "demo", "int8")),
        ("native, int4", lambda: rates(own, _NATIVE, "demo", "int4")),
        (f"llama.cpp, {options.gguf.name}", lambda: rates(own, _LLAMA, str(options.gguf))),
        ("native, 16-bit, again", lambda: rates(own, _NATIVE, "demo", "auto")),
    ]
    with RESULTS.open("a") as file:
        for name, measure in contenders:
            load = round(os.getloadavg()[0], 1)
            found = measure()
            print(f"{name:36} {found}", flush=True)
            file.write(json.dumps({"engine": name, "tokens_per_second": found, "load_average": load} | about) + "\n")


if __name__ == "__main__":
    main()
