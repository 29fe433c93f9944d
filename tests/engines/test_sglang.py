"""Protects: SGLang is started as its documentation says, asked for what was asked of us, and refused by name."""

import asyncio
import json
import math
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.conftest import write_tokenizer
from tuneserve.engines import _checks
from tuneserve.engines.contract import Engine, GenerationRequest, Grammar, SamplingParams, TokenChunk
from tuneserve.engines.kind import NamedAdapter, ServeOptions
from tuneserve.engines.registry import find_engine
from tuneserve.errors import EngineError, InputError, RequestError
from tuneserve.sources import resolve

Make = Callable[..., Path]
STAND_IN = Path(__file__).with_name("sglang_stand_in.py")


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_checks, "has_nvidia_gpu", lambda: True)
    monkeypatch.setenv("STAND_IN_DIRECTORY", str(tmp_path))


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Return an interpreter that seems to have SGLang."""
    return write_python(tmp_path, {"sglang": "0.5.23"})


def write_python(directory: Path, versions: dict[str, str]) -> Path:
    script = directory / "python"
    script.write_text(
        f"#!/bin/sh\nif [ \"$2\" = -c ]; then echo '{json.dumps(versions)}'; exit; fi\n"
        f'exec {sys.executable} {STAND_IN} "$@"\n'
    )
    script.chmod(0o755)
    return script


@pytest.fixture
def model(make_llama: Make) -> Path:
    directory = make_llama(vocab_size=258)
    config = (directory / "config.json").read_text()
    write_tokenizer(directory)
    (directory / "config.json").write_text(config)
    return directory


@asynccontextmanager
async def running(model: Path, options: ServeOptions, adapters: tuple[NamedAdapter, ...] = ()) -> AsyncIterator[Engine]:
    engine = await find_engine("sglang").start(resolve(model), adapters, options, "tuned")
    try:
        yield engine
    finally:
        await engine.close()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 120))


def request(prompt: list[int], adapter: str | None = None, **params: Any) -> GenerationRequest:
    return GenerationRequest(id="r", prompt_ids=prompt, params=SamplingParams(**params), adapter=adapter)


async def collect(engine: Engine, asked: GenerationRequest) -> list[TokenChunk]:
    return [chunk async for chunk in engine.generate(asked)]


def ids(chunks: list[TokenChunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


def last_body(directory: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((directory / "requests.jsonl").read_text().splitlines()[-1])
    return body


def test_its_command_line_is_the_documented_one(model: Path, make_lora: Make, python: Path, tmp_path: Path) -> None:
    adapter = NamedAdapter("tickets", make_lora(model))
    options = ServeOptions(
        context_length=64, max_running=4, dtype="bfloat16", tensor_parallel=2, program=python,
        arguments=("--enable-deterministic-inference",), logs=tmp_path / "logs",
    )  # fmt: skip
    assert find_engine("sglang").check(resolve(model), [adapter], options).problems == ()

    async def scenario() -> None:
        async with running(model, options, (adapter,)) as engine:
            info = engine.info
            assert (info.context_length, info.max_running, info.adapters) == (64, 4, ("tickets",))
            assert info.weight_bytes == 2**28
            assert "seed" not in info.lacks
            stats = await engine.stats()
            assert (stats.running, stats.waiting, stats.cache_usage) == (3, 2, 0.25)
            await collect(engine, request([5], "tickets", max_tokens=1, seed=7))
            assert last_body(tmp_path)["lora_path"] == "tickets"
            assert last_body(tmp_path)["sampling_params"]["sampling_seed"] == 7
            with pytest.raises(RequestError, match="'other' is not being served"):
                await collect(engine, request([5], "other", max_tokens=1))

    run(scenario())
    started = json.loads((tmp_path / "started.json").read_text())
    arguments = started["arguments"]
    assert arguments[:2] == ["-m", "sglang.launch_server"]
    for name, value in (("--model-path", str(model)), ("--served-model-name", "tuned"), ("--tp-size", "2")):
        assert arguments[arguments.index(name) + 1] == value
    assert arguments[arguments.index("--lora-paths") + 1] == f"tickets={adapter.directory}"
    assert arguments[-1] == "--enable-deterministic-inference"
    assert started["environment"]["SGLANG_RETURN_ORIGINAL_LOGPROB"] == "1"
    assert (tmp_path / "logs" / "sglang.log").exists()


def test_requests_keep_the_contract(model: Path, python: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(model, ServeOptions(program=python)) as engine:
            chunks = await collect(engine, request([5, 6], max_tokens=3, stop_token_ids=(2, 257)))
            assert ids(chunks) == [7, 8, 9]
            assert chunks[-1].finish_reason == "length"
            assert [chunk.cached_tokens for chunk in chunks] == [1, None, None]
            assert last_body(tmp_path)["sampling_params"]["stop_token_ids"] == [2, 257]
            assert last_body(tmp_path)["sampling_params"]["top_k"] == -1

            stopped = await collect(engine, request([5], stop_token_ids=(2, 8, 257)))
            assert ids(stopped) == [6, 7, 8]
            assert stopped[-1].finish_reason == "stop"

            # Without the model's own end tokens among the stops it runs over them, and stops where it is told to.
            over = await collect(engine, request([254], stop_token_ids=(4,)))
            assert ids(over) == [255, 0, 1, 2, 3, 4]
            assert last_body(tmp_path)["sampling_params"]["ignore_eos"] is True

            for kind, text, expected in (
                ("json_object", "", {"json_schema": '{"type": "object"}'}),
                ("regex", "a+", {"regex": "a+"}),
                ("choice", '["a.b", "c"]', {"regex": "(a\\.b)|(c)"}),
            ):
                grammar = Grammar(kind=kind, text=text)  # type: ignore[arg-type]
                await collect(engine, request([5], max_tokens=1, grammar=grammar, logit_bias={3: -1.0}))
                assert expected.items() <= last_body(tmp_path)["sampling_params"].items()
                assert last_body(tmp_path)["sampling_params"]["logit_bias"] == {"3": -1.0}

            for asked, reason in (
                (request([5] * 100), "refused the request: The input is too long"),
                (request([]), "no tokens"),
                (request([258]), "outside 0 to 257"),
                (request([5], presence_penalty=3), "presence_penalty is outside"),
                (request([5], grammar=Grammar(kind="lark", text="x")), "sglang does not have grammar lark"),
            ):
                with pytest.raises(RequestError, match=reason):
                    await collect(engine, asked)

            async with aclosing(engine.generate(request([5], stop_token_ids=(257,)))) as stream:
                await anext(stream)
            while not (tmp_path / "left").exists():
                await asyncio.sleep(0.01)

    run(scenario())


def test_log_probabilities_of_answer_and_prompt(model: Path, python: Path) -> None:
    async def scenario() -> None:
        async with running(model, ServeOptions(program=python)) as engine:
            chunks = await collect(engine, request([5, 6, 7], max_tokens=2, logprobs=2, prompt_logprobs=1))
        logprobs = [each for chunk in chunks for each in chunk.logprobs or []]
        assert [each.token_id for each in logprobs] == [8, 9]
        assert logprobs[0].logprob == pytest.approx(-math.log(2))
        assert [index for index, _ in logprobs[0].top] == [8, 9]
        assert [each.token_id for each in chunks[0].prompt_logprobs or []] == [6, 7]
        assert [len(each.top) for each in chunks[0].prompt_logprobs or []] == [1, 1]
        assert all(chunk.prompt_logprobs is None for chunk in chunks[1:])

    run(scenario())


def test_its_last_lines_say_why_it_did_not_start(model: Path, python: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    with pytest.raises(EngineError, match=r"(?s)SGLang ended with exit code 1 while it started.*CUDA out of memory"):
        run(find_engine("sglang").start(resolve(model), (), ServeOptions(program=python), "tuned"))  # type: ignore[arg-type]


def test_what_it_cannot_serve_is_named_with_what_to_export(
    model: Path, make_lora: Make, python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, options = find_engine("sglang"), ServeOptions(program=python)
    adapter = make_lora(model, use_rslora=True)
    merged = kind.check(resolve(adapter), (), options)
    assert merged.export == "merged_16bit"
    assert "beside its base" in merged.problems[0]
    unfit = kind.check(resolve(model), [NamedAdapter("tickets", adapter)], options)
    assert "rsLoRA scaling of the adapter tickets" in unfit.problems[0]
    assert unfit.export is None
    config = json.loads((model / "config.json").read_text())
    for method, parallel, reason in (("aqlm", 1, "quantised by aqlm"), ("bitsandbytes", 2, "does not divide")):
        (model / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
        found = kind.check(resolve(model), (), ServeOptions(program=python, tensor_parallel=parallel))
        assert reason in found.problems[0]
        assert found.export == "merged_16bit"
    (model / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(_checks, "has_nvidia_gpu", lambda: False)
    without = kind.check(resolve(model), (), options)
    assert (without.problems, without.export) == (("it needs an NVIDIA GPU, and this machine has none",), None)


def test_a_missing_or_old_installation_is_told(model: Path, tmp_path: Path) -> None:
    kind, source = find_engine("sglang"), resolve(model)
    with pytest.raises(EngineError, match="has no sglang; install it there"):
        kind.check(source, (), ServeOptions(program=write_python(tmp_path, {"torch": "2"})))
    with pytest.raises(EngineError, match=r"SGLang 0\.4\.9 is older than 0\.5\.10"):
        kind.check(source, (), ServeOptions(program=write_python(tmp_path, {"sglang": "0.4.9"})))
    with pytest.raises(InputError, match="--engine-arg --port is set by tuneserve itself"):
        kind.check(source, (), ServeOptions(arguments=("--port=1",)))
