"""Protects: once its cache has been filled, an engine needs no more memory, however many requests come and go.

Before, it grows: the cache's memory is the system's until a block of it is first used.
"""

from collections.abc import Callable
from pathlib import Path
from random import Random

import torch

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.native import EngineConfig, NativeCore

# A leak of a few objects per request is megabytes by then; the allocator's own ups and downs are less than one.
_REQUESTS = 600
_MOST_BYTES = 2 << 20


def resident() -> int:
    """Return the bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_full_cache_grows_no_more(make_llama: Callable[..., Path]) -> None:
    torch.set_num_threads(1)
    core = NativeCore(EngineConfig(model_dir=str(make_llama()), dtype="float32", cache_tokens=2048, max_running=16))
    draw = Random(0)

    def serve(count: int) -> None:
        for number in range(count):
            prompt = [draw.randrange(256) for _ in range(40)]
            params = SamplingParams(max_tokens=4, temperature=0.8, logprobs=2, presence_penalty=0.1)
            core.add(GenerationRequest(id=str(number), prompt_ids=prompt, params=params))
        while not core.idle:
            core.step()

    serve(_REQUESTS)
    before = resident()
    for _ in range(3):
        serve(_REQUESTS)
    assert resident() - before < _MOST_BYTES
