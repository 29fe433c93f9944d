"""Protects that what clients of vLLM ask of a prompt and of its tokens is the model's own answer, on the real engine.

The oracle is Transformers on the same weights in float32; a tolerance of 1e-3 is for another order of sums.
"""

import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM

from tuneserve.engines.native import NativeEngine
from tuneserve.gateway import ServedModel, create_app
from tuneserve.sources import resolve
from tuneserve.text import open_chat_template, open_tokenizer

pytestmark = pytest.mark.anyio
VOCABULARY = 258
PROMPT = [72, 105, 4, 200, 17, 99]


@pytest.fixture
def model(make_llama: Callable[..., Path], tokenizer_dir: Path) -> Path:
    directory = make_llama(vocab_size=VOCABULARY)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer_dir / name, directory / name)
    return directory


@pytest.fixture
async def native(model: Path) -> AsyncIterator[httpx.AsyncClient]:
    engine = await NativeEngine.start(resolve(model), dtype="float32")
    served = ServedModel("tuned", open_tokenizer(model), open_chat_template(model), engine)
    transport = httpx.ASGITransport(create_app(served))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
            yield client
    finally:
        await engine.close()


def _logprobs(model: Path, ids: list[int]) -> torch.Tensor:
    """Return the log-probabilities after each token, float32 (tokens, vocabulary)."""
    oracle = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: torch.Tensor = oracle(input_ids=torch.tensor([ids])).logits[0]
    return logits.log_softmax(-1)


async def _choice(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    body = {"model": "tuned", "prompt": PROMPT, "temperature": 0, "max_tokens": 5, **fields}
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


async def test_prompt_logprobs_and_token_ids_are_the_models(native: httpx.AsyncClient, model: Path) -> None:
    choice = await _choice(native, prompt_logprobs=20, return_token_ids=True, priority=-3)
    assert choice["prompt_token_ids"] == PROMPT
    expected = _logprobs(model, [*PROMPT, *choice["token_ids"]])
    for place, (token, entry) in enumerate(zip(PROMPT[1:], choice["prompt_logprobs"][1:], strict=True)):
        row = expected[place]
        assert {int(each): value["logprob"] for each, value in entry.items()} == pytest.approx(
            {int(each): float(row[int(each)]) for each in entry}, abs=1e-3
        )
        assert str(token) in entry
        likeliest = [each for each in entry.values() if each["rank"] is not None]
        assert [each["rank"] for each in likeliest] == list(range(1, 21))
        assert [each["logprob"] for each in likeliest] == pytest.approx(row.topk(20).values.tolist(), abs=1e-3)
    assert choice["token_ids"] == expected[len(PROMPT) - 1 : -1].argmax(-1).tolist()


async def test_the_likeliest_of_the_allowed_tokens_follow(native: httpx.AsyncClient, model: Path) -> None:
    allowed = [3, 50, 51, 120, 201]
    choice = await _choice(native, allowed_token_ids=allowed, return_token_ids=True)
    expected = _logprobs(model, [*PROMPT, *choice["token_ids"]])[len(PROMPT) - 1 : -1, allowed]
    assert choice["token_ids"] == [allowed[index] for index in expected.argmax(-1).tolist()]
    assert choice["finish_reason"] == "length"
    # One that ends an answer is the only one that may come.
    end = max(open_tokenizer(model).end_token_ids)
    choice = await _choice(native, allowed_token_ids=[end], return_token_ids=True)
    assert (choice["token_ids"], choice["finish_reason"]) == ([end], "stop")


async def test_a_kept_end_of_a_prompt_is_the_same_prompt(native: httpx.AsyncClient) -> None:
    kept = await _choice(native, truncate_prompt_tokens=4, return_token_ids=True, prompt_logprobs=1)
    given = await _choice(native, prompt=PROMPT[-4:], return_token_ids=True, prompt_logprobs=1)
    assert kept == given
