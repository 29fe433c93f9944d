"""How many GPUs 1,000 adapters and 10,000 requests per second take, by the way requests are routed.

Each replica is one H100 80 GB with vLLM and unmerged adapters over Llama-3.1-8B's shape, as fast as measured
(``src/tuneserve/planner/efficiency.toml``: prompts of 32 tokens, 128 new ones). Requests arrive at random (Poisson),
generate 128 tokens on average (geometric), and want adapters by Zipf's law. Writes ``simulate.jsonl``.
"""

import itertools
import json
import random
import statistics
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from router import Policy, Replica, Request, Speed, affine, at_random, least_loaded, simulate

sys.path.append(str(Path(__file__).parents[1]))
from circumstances import commit

ADAPTERS, RATE, TOKENS = 1000, 10_000.0, 128
# As tuneserve starts vLLM: 256 sequences, and (with 16 slots) that many adapters on the GPU, the others in the host's
# memory.
SEQUENCES = 256
# Policies, number of GPUs, exponent of the law by which adapters are wanted (0: all alike).
CASES = (
    *((name, gpus, 1.0) for gpus in (96, 128) for name in ("random", "least loaded", "affine")),
    *(("affine", gpus, 1.0) for gpus in (84, 88, 104, 112)),
    *((name, 96, 0.0) for name in ("random", "least loaded", "affine")),
)
# A LoRA of rank 16 on all linear weights has 84 MB, which PCIe moves in 2 ms at 50 GB/s; taken as slower by half.
LOAD_SECONDS = 0.003
SECONDS, WARM_UP = 20.0, 8.0
SEED, BOUND = 1, 1.25
RESULTS = Path(__file__).with_suffix(".jsonl")
FIGURES = Path(__file__).parents[2] / "src" / "tuneserve" / "planner" / "efficiency.toml"


def measured() -> dict[str, Any]:
    """Return the entry of the measurement that the replicas are as fast as."""
    rows = tomllib.loads(FIGURES.read_text())["speed"]
    wanted = {"engine": "vllm", "device": "nvidia", "weights_are": "lora"}
    return next(row for row in rows if wanted.items() <= row.items())


def arrivals(exponent: float) -> Iterator[Request]:
    """Yield requests in their order; the adapter of rank r is wanted in proportion to r to the power -exponent."""
    draw = random.Random(SEED)
    weights = list(itertools.accumulate((rank + 1) ** -exponent for rank in range(ADAPTERS)))
    now = 0.0
    while (now := now + draw.expovariate(RATE)) < SECONDS:
        (adapter,) = draw.choices(range(ADAPTERS), cum_weights=weights)
        yield Request(now, adapter, 1 + int(draw.expovariate(1 / (TOKENS - 0.5))))


def run(name: str, policy: Policy, gpus: int, exponent: float, slots: int) -> dict[str, Any]:
    """Return the figures of one run."""
    figures = measured()
    speed = Speed([(int(count), float(total)) for count, total in figures["tokens_per_second"]])
    requests = list(arrivals(exponent))
    replicas = [Replica(speed, SEQUENCES, slots, LOAD_SECONDS) for _ in range(gpus)]
    outcome = simulate(requests, replicas, policy)
    counted = [index for index, request in enumerate(requests) if request.time >= WARM_UP]
    waits = statistics.quantiles((outcome.waits[index] for index in counted), n=100)
    times = statistics.quantiles((outcome.times[index] for index in counted), n=100)
    # In seconds of arrivals; it grows with the run where the replicas do not keep up.
    backlog = sum(request.time + wait > SECONDS for request, wait in zip(requests, outcome.waits, strict=True)) / RATE
    return {
        "policy": name, "gpus": gpus, "slots": slots, "zipf": exponent, "requests": len(requests),
        "wait_p50_s": round(waits[49], 4), "wait_p99_s": round(waits[98], 3), "time_p50_s": round(times[49], 2),
        "time_p99_s": round(times[98], 2), "loads_per_request": round(outcome.loads / len(requests), 4),
        "busy": round(outcome.busy, 3), "backlog_s": round(backlog, 2),
    }  # fmt: skip


def main() -> None:
    """Run every policy and every number of GPUs."""
    common = {
        "adapters": ADAPTERS, "rate": RATE, "tokens": TOKENS, "sequences": SEQUENCES, "load_s": LOAD_SECONDS,
        "seconds": SECONDS, "seed": SEED, "bound": BOUND, "measured": measured()["measured"], "commit": commit(),
    }  # fmt: skip
    policies = {"random": lambda: at_random(SEED), "least loaded": least_loaded, "affine": lambda: affine(BOUND)}
    with RESULTS.open("w") as file:
        for (name, gpus, exponent), slots in itertools.product(CASES, (16, 32)):
            row = run(name, policies[name](), gpus, exponent, slots)
            file.write(json.dumps(row | common) + "\n")
            file.flush()
            print(row)


if __name__ == "__main__":
    main()
