"""vLLM, Unsloth and Transformers at the work of ``decode.py``, each run being a process in its own environment.

Greedy, end of sequence ignored, prefill included, as in ``decode.py``: run both on the same machine in turn. Appends a
line per batch size to ``peers.jsonl``, or to the file that ``--out`` names.

    python -P benchmarks/gpu/peers.py vllm /tmp/llama-8b/base --batch 1 8 32 128 256
    python -P benchmarks/gpu/peers.py vllm /tmp/llama-8b/base --adapter /tmp/llama-8b/adapter
    python -P benchmarks/gpu/peers.py vllm /tmp/llama-8b/base --prompt 8000 --context 8192 --batch 1 32
    python -P benchmarks/gpu/peers.py unsloth /tmp/llama-8b/base --nf4 --batch 1 8 32
"""

import argparse
import importlib.metadata
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
from circumstances import gpu_circumstances

os.environ.update(HF_HUB_OFFLINE="1", VLLM_USE_FLASHINFER_SAMPLER="0", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
os.environ.update(UNSLOTH_DISABLE_STATISTICS="1")
Generate = Callable[[list[list[int]], int], int]
"""Answers prompts with so many tokens each, and returns how many tokens that were."""


def vllm(options: argparse.Namespace) -> Generate:
    """vLLM's offline engine; NF4 is made at load."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    named: dict[str, Any] = {"quantization": "bitsandbytes"} if options.nf4 else {}
    request = None
    if options.adapter:
        named |= {"enable_lora": True, "max_lora_rank": 16, "max_loras": 1}
        request = LoRARequest("adapter", 1, str(options.adapter))
    llm = LLM(
        str(options.model), dtype="bfloat16", max_model_len=options.context, gpu_memory_utilization=0.85,
        enable_prefix_caching=False, **named,
    )  # fmt: skip

    def generate(prompts: list[list[int]], new: int) -> int:
        params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = llm.generate(asked, params, lora_request=request, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return generate


def unsloth(options: argparse.Namespace) -> Generate:
    """Unsloth's ``for_inference``; with an adapter its base is what the adapter's configuration names."""
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        str(options.adapter or options.model), max_seq_length=options.context, load_in_4bit=options.nf4,
        local_files_only=True, dtype=None,
    )  # fmt: skip
    FastLanguageModel.for_inference(model)
    return _of_transformers(model)


def transformers(options: argparse.Namespace) -> Generate:
    """Transformers' ``generate``."""
    import torch
    from transformers import AutoModelForCausalLM

    if options.adapter or options.nf4:
        raise SystemExit("transformers: only merged 16-bit weights are measured here, name unsloth for the others")
    return _of_transformers(AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).cuda().eval())


def _of_transformers(model: Any) -> Generate:
    import torch

    def generate(prompts: list[list[int]], new: int) -> int:
        ids = torch.tensor(prompts).cuda()
        lengths = {"max_new_tokens": new, "min_new_tokens": new}
        with torch.inference_mode():
            answered = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=2, **lengths
            )
        return int(answered.cpu()[:, ids.shape[1] :].numel())

    return generate


def main() -> None:
    """Time, append."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    engines = {engine.__name__: engine for engine in (vllm, unsloth, transformers)}
    parser.add_argument("engine", choices=engines)
    parser.add_argument("model", type=Path)
    parser.add_argument("--adapter", type=Path, help="stays unmerged")
    parser.add_argument("--nf4", action="store_true")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 128, 256])
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    options = parser.parse_args()
    generate = engines[options.engine](options)
    draw = random.Random(0)

    def seconds(batch: int, new: int) -> float:
        prompts = [[draw.randint(10, 40000) for _ in range(options.prompt)] for _ in range(batch)]
        started = time.perf_counter()
        produced = generate(prompts, new)
        took = time.perf_counter() - started
        assert produced == batch * new, produced
        return took

    seconds(1, 2)
    cold = time.perf_counter() - began
    facts = {
        "engine": options.engine, "version": importlib.metadata.version(options.engine), "model": options.model.name,
        "adapter": bool(options.adapter), "nf4": options.nf4, "prompt": options.prompt, "new": options.new,
        "context": options.context, "imports_to_first_token_s": round(cold, 1), **gpu_circumstances(),
    }  # fmt: skip
    for batch in options.batch:
        seconds(batch, min(16, options.new))
        median = statistics.median(seconds(batch, options.new) for _ in range(options.runs))
        line = {"batch": batch, "tok_per_s": round(batch * options.new / median, 1)}
        print(json.dumps({"engine": options.engine} | line), flush=True)
        with options.out.open("a") as out:
            out.write(json.dumps(line | facts) + "\n")


if __name__ == "__main__":
    main()
