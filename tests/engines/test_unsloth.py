"""Protects: Unsloth's process serves the model and its adapters through the contract, in an environment of its own."""

import asyncio
import json
import sys
import warnings
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tuneserve.engines import _checks
from tuneserve.engines.contract import Engine, GenerationRequest, SamplingParams, TokenChunk
from tuneserve.engines.kind import NamedAdapter, ServeOptions
from tuneserve.engines.registry import find_engine
from tuneserve.errors import EngineError, InputError, RequestError
from tuneserve.sources import resolve

Make = Callable[..., Path]
FAKE = Path(__file__).with_name("fake_unsloth")


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_checks, "has_nvidia_gpu", lambda: True)
    monkeypatch.setenv("STAND_IN_DIRECTORY", str(tmp_path))


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Return an interpreter that seems to have Unsloth."""
    script = tmp_path / "python"
    script.write_text(
        f"#!/bin/sh\nif [ \"$2\" = -c ]; then echo '{json.dumps({'unsloth': '2026.10.9'})}'; exit; fi\n"
        f'PYTHONPATH={FAKE} exec {sys.executable} "$@"\n'
    )
    script.chmod(0o755)
    return script


def run(scenario: Coroutine[Any, Any, Any]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 300))


async def collect(engine: Engine, prompt: list[int], adapter: str | None = None, **params: Any) -> list[TokenChunk]:
    asked = GenerationRequest(id="r", prompt_ids=prompt, params=SamplingParams(**params), adapter=adapter)
    return [chunk async for chunk in engine.generate(asked)]


def ids(chunks: list[TokenChunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


def greedy(directory: Path, adapter: Path | None, prompt: list[int], count: int) -> list[int]:
    """Return what Transformers and PEFT make of it."""
    import peft

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with warnings.catch_warnings(action="ignore"):
        tuned = peft.PeftModel.from_pretrained(model, str(adapter)) if adapter else model
    found: list[int] = []
    with torch.inference_mode():
        for _ in range(count):
            found.append(int(tuned(input_ids=torch.tensor([prompt + found])).logits[0, -1].argmax()))
    return found


def test_the_model_and_its_adapters_are_served(make_llama: Make, make_lora: Make, python: Path, tmp_path: Path) -> None:
    base = make_llama(max_position_embeddings=4096, dtype=torch.float32)
    tuned = make_lora(base, scale=0.5)
    expected = {name: greedy(base, path, [5, 6], 6) for name, path in ((None, None), ("tuned", tuned))}
    assert expected[None] != expected["tuned"]
    options = ServeOptions(program=python, dtype="float32", context_length=2048)
    adapters = [NamedAdapter("tuned", tuned)]
    assert find_engine("unsloth").check(resolve(base), adapters, options).problems == ()

    async def scenario() -> None:
        engine = await find_engine("unsloth").start(resolve(base), adapters, options, "base")
        try:
            info = engine.info
            assert (info.vocab_size, info.dtype, info.adapters) == (256, "float32", ("tuned",))
            assert (tmp_path / "for_inference").exists()
            for name in (None, "tuned", None):
                chunks = await collect(engine, [5, 6], name, max_tokens=6, temperature=0)
                assert ids(chunks) == expected[name]
                assert chunks[-1].finish_reason == "length"
                assert len(chunks) == 7

            stop = expected[None][2]
            first = expected[None].index(stop) + 1
            stopped = await collect(engine, [5, 6], max_tokens=6, temperature=0, stop_token_ids=(stop,))
            assert ids(stopped) == expected[None][:first]
            assert stopped[-1].finish_reason == "stop"

            (told,) = await collect(engine, [5, 6], max_tokens=2, temperature=0, logprobs=3)
            assert told.logprobs is not None
            assert [each.token_id for each in told.logprobs] == expected[None][:2]
            assert [each.top[0][0] for each in told.logprobs] == expected[None][:2]
            assert all(each.logprob == pytest.approx(each.top[0][1]) for each in told.logprobs)

            sampled = [ids(await collect(engine, [5], max_tokens=8, seed=seed, min_p=0.01)) for seed in (1, 1, 2)]
            assert sampled[0] == sampled[1] != sampled[2]

            for prompt, adapter, reason in (
                ([], None, "no tokens"),
                ([256], None, "outside 0 to 255"),
                ([1] * 2048, None, "leaves no room"),
                ([1], "other", "'other' is not being served"),
            ):
                with pytest.raises(RequestError, match=reason):
                    await collect(engine, prompt, adapter)

            request = GenerationRequest(id="r", prompt_ids=[5], params=SamplingParams(temperature=0))
            async with aclosing(engine.generate(request)) as stream:
                await anext(stream)
                assert (await engine.stats()).running == 1
            while (await engine.stats()).running:
                await asyncio.sleep(0.01)
        finally:
            await engine.close()

    run(scenario())


def test_an_adapter_as_the_model_stays_unmerged(make_llama: Make, make_lora: Make, python: Path) -> None:
    base = make_llama(dtype=torch.float32)
    adapter = make_lora(base, scale=0.5, use_rslora=True)

    async def scenario() -> None:
        engine = await find_engine("unsloth").start(
            resolve(adapter), [], ServeOptions(program=python, dtype="float32"), "a"
        )
        try:
            assert ids(await collect(engine, [5, 6], max_tokens=4, temperature=0)) == greedy(base, adapter, [5, 6], 4)
        finally:
            await engine.close()

    run(scenario())


def test_its_last_lines_say_why_it_did_not_start(make_llama: Make, python: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    with pytest.raises(EngineError, match=r"(?s)Unsloth ended with exit code 1 .*You need a GPU"):
        run(find_engine("unsloth").start(resolve(make_llama()), [], ServeOptions(program=python), "a"))


def test_what_it_cannot_serve_is_named(
    make_llama: Make, write_gguf_model: Make, python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path / "cache"))
    kind, model, options = find_engine("unsloth"), resolve(make_llama()), ServeOptions(program=python)
    gguf = kind.check(resolve(write_gguf_model(tmp_path / "model.gguf")), (), options)
    assert (gguf.problems, gguf.export) == (("it takes no GGUF file",), "merged_16bit")
    config = json.loads((model.model_dir / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (model.model_dir / "config.json").write_text(json.dumps(config))
    assert kind.check(model, (), options).problems == ("it does not load weights quantised by fp8",)
    with pytest.raises(InputError, match="one sequence at a time"):
        kind.check(model, (), ServeOptions(program=python, max_running=2))
    with pytest.raises(EngineError, match="has no unsloth"):
        kind.check(model, (), ServeOptions(program=Path(sys.executable)))
    monkeypatch.setattr(_checks, "has_nvidia_gpu", lambda: False)
    assert "it needs an NVIDIA GPU, and this machine has none" in kind.check(model, (), options).problems
