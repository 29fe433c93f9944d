"""Protects: log-probabilities are the model's own, whatever is filtered, batched or chunked, and reach the caller."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tuneserve.engines.contract import GenerationRequest, SamplingParams, TokenLogprob
from tuneserve.engines.kind import NativeOptions
from tuneserve.engines.native import NativeEngine
from tuneserve.native import LLM, EngineConfig, NativeCore
from tuneserve.sources import resolve

Reference = Callable[[Path, list[int]], torch.Tensor]
# Float32 sums in another order.
TOLERANCE = 2e-5


def check(entries: list[TokenLogprob], ids: list[int], count: int, expected: torch.Tensor) -> None:
    """Check the entries of the last tokens of ``ids``; ``expected`` has a row per token."""
    assert [entry.token_id for entry in entries] == ids[len(ids) - len(entries) :]
    for entry, row in zip(entries, expected[-len(entries) - 1 : -1], strict=True):
        assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=TOLERANCE)
        assert [value for _, value in entry.top] == pytest.approx(row.topk(count).values.tolist(), abs=TOLERANCE)
        assert all(value == pytest.approx(row[token].item(), abs=TOLERANCE) for token, value in entry.top)


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_they_are_those_of_transformers_before_any_filter(
    temperature: float, talker: Path, reference_logprobs: Reference
) -> None:
    llm = LLM(talker, dtype="float32", max_running=3)
    params = SamplingParams(
        temperature=temperature, max_tokens=9, seed=4, top_k=3, repetition_penalty=1.4, logprobs=5, prompt_logprobs=2
    )
    prompts = [[1, 40, 77], [9], list(range(3, 300))]
    for prompt, completion in zip(prompts, llm.generate(prompts, params), strict=True):
        ids = prompt + completion.token_ids
        expected = reference_logprobs(talker, ids)
        assert completion.logprobs is not None
        assert completion.prompt_logprobs is not None
        check(completion.logprobs, ids, 5, expected)
        assert len(completion.prompt_logprobs) == len(prompt) - 1
        check(completion.prompt_logprobs, prompt, 2, expected[: len(prompt)])


def test_a_prompt_of_several_chunks_is_scored_whole(
    make_llama: Callable[..., Path], reference_logprobs: Reference
) -> None:
    model_dir = make_llama(dtype=torch.float32, max_position_embeddings=2048)
    core = NativeCore(EngineConfig(model_dir=str(model_dir), dtype="float32"))
    prompt = [(7 * index) % 256 for index in range(1300)]
    params = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=0)
    core.add(GenerationRequest(id="long", prompt_ids=prompt, params=params))
    core.add(GenerationRequest(id="plain", prompt_ids=[5, 6], params=SamplingParams(temperature=0, max_tokens=2)))
    outputs = []
    while not core.idle:
        outputs += core.step()
    first, second = (output for output in outputs if output.id == "long")
    assert first.prompt_logprobs is not None
    assert second.prompt_logprobs is None
    assert first.logprob is None
    check(first.prompt_logprobs, prompt, 0, reference_logprobs(model_dir, prompt))
    assert all(output.prompt_logprobs is None for output in outputs if output.id == "plain")


def test_a_prompt_that_the_cache_holds_is_scored_whole(talker: Path, reference_logprobs: Reference) -> None:
    llm = LLM(talker, dtype="float32")
    prompt = list(range(3, 103))
    llm.generate([prompt], SamplingParams(temperature=0, max_tokens=1))
    params = SamplingParams(temperature=0, max_tokens=3, prompt_logprobs=1)
    for completion in llm.generate([prompt] * 3, params):
        assert completion.prompt_logprobs is not None
        assert len(completion.prompt_logprobs) == len(prompt) - 1
        check(completion.prompt_logprobs, prompt, 1, reference_logprobs(talker, prompt))


def test_none_are_given_unasked(talker: Path) -> None:
    (completion,) = LLM(talker, dtype="float32").generate([[5]], SamplingParams(temperature=0, max_tokens=2))
    assert completion.logprobs is completion.prompt_logprobs is None


def test_more_than_the_vocabulary_are_the_vocabulary(make_llama: Callable[..., Path]) -> None:
    core = NativeCore(EngineConfig(model_dir=str(make_llama(vocab_size=40)), dtype="float32"))
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=100)
    core.add(GenerationRequest(id="x", prompt_ids=[3], params=params))
    (output,) = core.step()
    assert output.logprob is not None
    assert sorted(token for token, _ in output.logprob.top) == list(range(40))


def test_they_cross_the_wire(talker: Path, reference_logprobs: Reference) -> None:
    async def scenario() -> None:
        engine = await NativeEngine.start(resolve(talker), dtype="float32", native=NativeOptions(speculation=3))
        try:
            params = SamplingParams(
                temperature=0, max_tokens=4, logprobs=2, prompt_logprobs=1, logit_bias={5: 50.0}, bad_words=((5, 5),)
            )
            request = GenerationRequest(id="x", prompt_ids=[7, 8, 9], params=params)
            chunks = [chunk async for chunk in engine.generate(request)]
        finally:
            await engine.close()
        ids = [7, 8, 9] + [token for chunk in chunks for token in chunk.token_ids]
        assert ids[3] == 5 != ids[4]
        expected = reference_logprobs(talker, ids)
        check([entry for chunk in chunks for entry in chunk.logprobs or []], ids, 2, expected)
        assert chunks[0].prompt_logprobs is not None
        check(chunks[0].prompt_logprobs, [7, 8, 9], 1, expected[:3])
        assert all(chunk.prompt_logprobs is None for chunk in chunks[1:])

    asyncio.run(scenario())
