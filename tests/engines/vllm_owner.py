"""Serves the adapter unmerged with vLLM: ``vllm_owner.py PROMPT``, token ids in JSON; prints what it answers.

Then it waits to be killed.
"""

import asyncio
import json
import sys
from typing import Any

import msgspec

from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.engines.kind import NamedAdapter, ServeOptions
from tuneserve.engines.vllm import Vllm
from tuneserve.sources import resolve


async def main() -> None:
    tickets = resolve("demo:tickets").adapter_dir
    assert tickets is not None
    options = ServeOptions(context_length=512, max_running=4)
    engine = await Vllm().start(resolve("demo"), [NamedAdapter("tickets", tickets)], options, "demo")

    async def answer(adapter: str | None) -> Any:
        params = SamplingParams(temperature=0, max_tokens=8, logprobs=100)
        request = GenerationRequest(
            id=f"of-{adapter}", prompt_ids=json.loads(sys.argv[1]), params=params, adapter=adapter
        )
        ids, logprobs, reason = list[int](), list[Any](), None
        async for chunk in engine.generate(request):
            ids += chunk.token_ids
            logprobs += chunk.logprobs or []
            reason = chunk.finish_reason
        return {"ids": ids, "reason": reason, "logprobs": logprobs}

    both = await asyncio.gather(answer(None), answer("tickets"))
    sys.stdout.buffer.write(msgspec.json.encode(both) + b"\n")
    sys.stdout.buffer.flush()
    await asyncio.sleep(3600)


asyncio.run(main())
