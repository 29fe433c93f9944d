"""Says what the time of decode steps goes to, kernel by kernel, with and without adapters unmerged, in one process.

What a kernel takes is what it adds to the end of all before it, for they overlap. The model is a directory as for
``decode.py``. Appends a line per case to the file that ``--out`` names.

    python benchmarks/gpu/breakdown.py /tmp/llama-8b/base --cases 1 256 256:sampled 128:adapter 256:adapter
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from decode import generate, put_adapters
from torch.profiler import ProfilerActivity, profile

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.native import EngineConfig, NativeCore
from tuneserve.spec import read_spec

PROMPT, PROFILED, NEW = 32, 17, 128


def start(core: NativeCore, batch: int, params: SamplingParams) -> None:
    """Queue requests."""
    names = core.info.adapters
    for index in range(batch):
        ids = torch.randint(10, 40000, (PROMPT,)).tolist()
        adapter = names[index % len(names)] if names else None
        core.add(GenerationRequest(id=str(index), prompt_ids=ids, params=params, adapter=adapter))


def run(core: NativeCore, least: int) -> float:
    """Step until so many tokens have come, or all; return the milliseconds."""
    torch.cuda.synchronize()
    started, produced = time.perf_counter(), 0
    while not core.idle and produced < least:
        produced += len(core.step())
    torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1e3


def profiled(core: NativeCore, least: int, steps: int) -> list[tuple[str, float, float]]:
    """Return name, launches and microseconds of each kernel, per step, the longest first."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run(core, least)
    events = [event for event in found.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    spent: dict[str, float] = defaultdict(float)
    launches: dict[str, int] = defaultdict(int)
    latest = 0.0
    for event in sorted(events, key=lambda event: event.time_range.end):
        begin, end = event.time_range.start, event.time_range.end
        if latest:
            spent["(idle)"] += max(0.0, begin - latest)
        spent[event.name] += end - max(latest, begin)
        launches[event.name] += 1
        latest = end
    return sorted(((name, launches[name] / steps, us / steps) for name, us in spent.items()), key=lambda one: -one[2])


def measure(core: NativeCore, batch: int, params: SamplingParams) -> dict[str, Any]:
    """Return speed and where the time went."""
    one = {"top_p": params.top_p, "temperature": params.temperature}
    short, whole = SamplingParams(**one, max_tokens=PROFILED), SamplingParams(**one, max_tokens=NEW)
    generate(core, batch, PROMPT, PROFILED, short)
    seconds = generate(core, batch, PROMPT, NEW, whole)
    start(core, batch, whole)
    first_ms = run(core, batch)
    step_ms = run(core, batch * NEW) / (NEW - 1)
    start(core, batch, short)
    first = profiled(core, batch, 1)
    steps = profiled(core, batch * NEW, PROFILED - 1)
    return {
        "batch": batch, "tok_per_s": round(batch * NEW / seconds, 1), "first_ms": round(first_ms, 2),
        "step_ms": round(step_ms, 3), "steps": _rounded(steps), "first": _rounded(first),
    }  # fmt: skip


def _rounded(found: list[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    return [(name[:80], round(launches, 2), round(us, 1)) for name, launches, us in found[:24]]


def main() -> None:
    """Measure the cases in their order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--cases", nargs="+", default=["1", "128", "256", "128:adapter", "256:adapter"])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    cases = [case.partition(":")[::2] for case in options.cases]
    most = max(int(batch) for batch, _ in cases)
    core = NativeCore(
        EngineConfig(model_dir=str(options.model), context_length=2048, max_running=most, prefix_cache=False)
    )
    spec = read_spec(json.loads((options.model / "config.json").read_text()))
    for batch, how in sorted(cases, key=lambda case: case[1] == "adapter"):
        if how == "adapter" and not core.info.adapters:
            put_adapters(core, spec, 1, options.rank)
        params = SamplingParams(temperature=0.8, top_p=0.95) if how == "sampled" else SamplingParams(temperature=0)
        line = {"how": how or "plain", **measure(core, int(batch), params), "gpu": torch.cuda.get_device_name()}
        with options.out.open("a") as out:
            out.write(json.dumps(line) + "\n")
        print(*(f"{name} {line[name]}" for name in ("how", "batch", "tok_per_s", "first_ms", "step_ms")), flush=True)
        for name, launches, us in line["steps"][:12]:
            print(f"    {us:9.1f} us {launches:6.1f} x {name}", flush=True)
        for name, launches, us in line["first"][:6]:
            print(f"    first: {us:9.1f} us {launches:6.1f} x {name}", flush=True)


if __name__ == "__main__":
    main()
