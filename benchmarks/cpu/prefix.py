"""What a prompt of 1,016 tokens costs whose first 1,000 were seen before, beside what it costs the first time.

SmolLM2-135M-Instruct (the source ``demo``), compiled step, time to the first token. Each round has a prompt of its own:
once with an ending, then with another ending. Appends a line of JSON to ``prefix.jsonl``.

    python benchmarks/cpu/prefix.py
"""

import json
import os
import random
import sys
import time
from pathlib import Path
from statistics import median

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.native import EngineConfig, NativeCore
from tuneserve.sources import resolve

sys.path.append(str(Path(__file__).parents[1]))
from circumstances import circumstances

RESULTS = Path(__file__).with_suffix(".jsonl")
PREFIX, ENDING, ROUNDS = 1000, 16, 9


def first_token(core: NativeCore, name: str, prompt: list[int]) -> float:
    """Return the seconds until a prompt's first token."""
    began = time.perf_counter()
    core.add(GenerationRequest(id=name, prompt_ids=prompt, params=SamplingParams(max_tokens=1, temperature=0)))
    while not core.idle:
        core.step()
    return time.perf_counter() - began


def main() -> None:
    """Measure, append the result, print it."""
    core = NativeCore(EngineConfig.of(resolve("demo"), context_length=2048))
    rng = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(100, core.info.vocab_size) for _ in range(count)]

    first_token(core, "warm", tokens(PREFIX + ENDING))
    fresh, seen = [], []
    for index in range(ROUNDS):
        prefix = tokens(PREFIX)
        fresh.append(first_token(core, f"fresh{index}", prefix + tokens(ENDING)))
        seen.append(first_token(core, f"seen{index}", prefix + tokens(ENDING)))
    result = {
        "prefix": PREFIX,
        "ending": ENDING,
        "fresh_ms": [round(1e3 * one, 2) for one in fresh],
        "seen_ms": [round(1e3 * one, 2) for one in seen],
        "ratio": round(median(seen) / median(fresh), 4),
        "load_average": round(os.getloadavg()[0], 1),
        **circumstances(),
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(result) + "\n")
    print(f"first time {1e3 * median(fresh):.1f} ms, seen before {1e3 * median(seen):.1f} ms: {result['ratio']:.1%}")


if __name__ == "__main__":
    main()
