"""Protects: llama.cpp, really installed and really run, serves our GGUF exports as the model that was trained.

The oracle is Transformers with PEFT's layers, unmerged, which shares no code with the export or with llama.cpp.
"""

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import tuneserve
from tuneserve.engines import environments
from tuneserve.engines.contract import Engine, GenerationRequest, Grammar, SamplingParams, TokenLogprob
from tuneserve.engines.kind import NamedAdapter, ServeOptions
from tuneserve.engines.llama_cpp import LlamaCpp
from tuneserve.errors import EngineError
from tuneserve.parity._sides import open_side
from tuneserve.parity._stream import StreamedModel
from tuneserve.parity._thresholds import thresholds_for
from tuneserve.sources import resolve
from tuneserve.text import Tokenizer, open_chat_template, open_tokenizer

TICKETS = ("My parcel never came and I want my money back.", "How do I change my password?", "La app se cierra sola.")
TOP = 100
OPTIONS = ServeOptions(context_length=512, max_running=2)


@dataclass(frozen=True)
class Exports:
    """What the tests serve."""

    merged: dict[str, Path]
    base: Path
    adapter: NamedAdapter


@dataclass(frozen=True)
class Answer:
    """What a sequence came to."""

    ids: list[int]
    reason: str | None
    logprobs: list[TokenLogprob]


@pytest.fixture(scope="module", autouse=True)
def _installed() -> Iterator[None]:
    environments.install("llama.cpp", lambda _: None)
    with pytest.MonkeyPatch.context() as patch:
        # Not a llama-server that this machine happens to have; and one thread, because two that wait for each other in
        # a loop crawl while the machine is busy with other tests.
        patch.setattr("shutil.which", lambda _: None)
        patch.setenv("OMP_THREAD_LIMIT", "1")
        yield


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    directory = tmp_path_factory.mktemp("exports")
    methods = ("gguf:bf16", "gguf:q8_0", "gguf-lora")
    tuneserve.export("demo:tickets", directory / "merged", method=methods, verify=False)
    tuneserve.export("demo", directory / "base", method="gguf:bf16", verify=False)

    def only(where: Path) -> Path:
        (file,) = where.glob("*.gguf")
        return file

    merged = {method: only(directory / "merged" / method.replace(":", "-")) for method in methods[:2]}
    return Exports(merged, only(directory / "base"), NamedAdapter("tickets", directory / "merged" / "gguf-lora"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    source = resolve("demo")
    return open_tokenizer(source.tokenizer_dir, source.model_dir)


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    template = open_chat_template(resolve("demo").tokenizer_dir)
    assert template is not None
    texts = [template.render([{"role": "user", "content": text}], add_generation_prompt=True) for text in TICKETS]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


@asynccontextmanager
async def serving(file: Path, *adapters: NamedAdapter, options: ServeOptions = OPTIONS) -> AsyncIterator[Engine]:
    engine = await LlamaCpp().start(resolve(file), adapters, options, "demo")
    try:
        yield engine
    finally:
        await engine.close()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 600))


async def answer(engine: Engine, ids: list[int], adapter: str | None = None, **params: Any) -> Answer:
    found, logprobs, reason = list[int](), list[TokenLogprob](), None
    request = GenerationRequest(id="a", prompt_ids=ids, params=SamplingParams(**params), adapter=adapter)
    async for chunk in engine.generate(request):
        found += chunk.token_ids
        logprobs += chunk.logprobs or []
        reason = chunk.finish_reason
    return Answer(found, reason, logprobs)


@pytest.fixture(scope="module")
def trained() -> StreamedModel:
    return StreamedModel(open_side(resolve("demo:tickets")), resident=True)


@pytest.fixture(scope="module")
def untrained() -> StreamedModel:
    return StreamedModel(open_side(resolve("demo")), resident=True)


def divergences(model: StreamedModel, prompt: list[int], got: Answer) -> list[float]:
    """Return the KL divergence at each new token, with all but the likeliest tokens taken together, which bounds it."""
    ids = torch.tensor([prompt + got.ids[:-1]])
    wanted = torch.zeros_like(ids, dtype=torch.bool)
    wanted[0, len(prompt) - 1 :] = True
    found = []
    for row, entry in zip(model.logits(ids, wanted).log_softmax(-1), got.logprobs, strict=True):
        tokens, values = zip(*entry.top, strict=True)
        theirs, ours = row[list(tokens)].double(), torch.tensor(values, dtype=torch.float64)
        rest = [(1 - part.exp().sum()).clamp_min(1e-9) for part in (theirs, ours)]
        kl = (theirs.exp() * (theirs - ours)).sum() + rest[0] * (rest[0] / rest[1]).log()
        found.append(float(kl))
    return found


@pytest.mark.parametrize("method", ["gguf:bf16", "gguf:q8_0"])
def test_a_merged_export_has_the_probabilities_of_the_unmerged_reference(
    method: str,
    exports: Exports,
    prompts: list[list[int]],
    tokenizer: Tokenizer,
    trained: StreamedModel,
    untrained: StreamedModel,
) -> None:
    async def scenario() -> None:
        async with serving(exports.merged[method]) as engine:
            assert engine.info.dtype == method.removeprefix("gguf:")
            ends = tuple(tokenizer.end_token_ids)
            greedy: dict[str, Any] = {"temperature": 0, "stop_token_ids": ends, "logprobs": TOP}
            got.extend([await answer(engine, prompt, **greedy) for prompt in prompts])

    got: list[Answer] = []
    run(scenario())
    assert all(entry.token_id == token for one in got for entry, token in zip(one.logprobs, one.ids, strict=True))
    assert [one.reason for one in got] == ["stop"] * 3
    measured = [kl for prompt, one in zip(prompts, got, strict=True) for kl in divergences(trained, prompt, one)]
    limits = thresholds_for(method)
    # Measured: 8e-6 and 2e-4 in bf16, 4e-4 and 0.01 in q8_0.
    assert sum(measured) / len(measured) < limits.mean_kl
    assert max(measured) < limits.max_kl
    unlike = divergences(untrained, prompts[0], got[0])
    assert sum(unlike) / len(unlike) > 10 * limits.mean_kl, "a lost adapter would be seen"


def test_an_unmerged_adapter_is_chosen_by_each_request(
    exports: Exports, prompts: list[list[int]], trained: StreamedModel, untrained: StreamedModel
) -> None:
    async def scenario() -> None:
        async with serving(exports.base, exports.adapter) as engine:
            assert engine.info.adapters == ("tickets",)
            both = (None, "tickets", None, "tickets")
            asked = [answer(engine, prompts[0], name, temperature=0, max_tokens=12, logprobs=TOP) for name in both]
            got.extend(await asyncio.gather(*asked))

    got: list[Answer] = []
    run(scenario())
    limits = thresholds_for("gguf:bf16")
    # The last two: their slots had served the other before.
    for model, one in zip((untrained, trained), got[2:], strict=True):
        measured = divergences(model, prompts[0], one)
        assert sum(measured) / len(measured) < limits.mean_kl
        assert max(measured) < limits.max_kl
    assert got[0].ids != got[1].ids


def test_every_token_of_a_character_in_several_is_told(
    exports: Exports, tokenizer: Tokenizer, untrained: StreamedModel
) -> None:
    """llama-server streams no event for a token that ends within a character."""
    text = "🦙é日本語"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) > len(text)
    prompt = tokenizer.encode("Some letters:", add_special_tokens=False)
    choice = Grammar(kind="choice", text=f'["{text}"]')
    (fragment,) = tokenizer.encode("🦙", add_special_tokens=False)[:1]

    async def scenario() -> None:
        async with serving(exports.base) as engine:
            got = await answer(engine, prompt, temperature=0, grammar=choice, logprobs=5)
            assert got.ids[: len(ids)] == ids
            assert got.reason == "stop"
            logprobs.extend(got.logprobs[: len(ids)])
            cut = await answer(engine, prompt, temperature=0, grammar=choice, max_tokens=5)
            assert cut == Answer(ids[:4], "length", []), "the fifth is within a character"
            # No text at all comes of this, and its stream has no event but the last.
            endless = await answer(engine, prompt, temperature=0, max_tokens=5, logit_bias={fragment: 100.0})
            assert endless == Answer([fragment] * 5, "length", [])

    logprobs: list[TokenLogprob] = []
    run(scenario())
    rows = torch.tensor([prompt + ids[:-1]])
    wanted = torch.zeros_like(rows, dtype=torch.bool)
    wanted[0, len(prompt) - 1 :] = True
    expected = untrained.logits(rows, wanted).log_softmax(-1)
    for token, entry, row in zip(ids, logprobs, expected, strict=True):
        assert entry.token_id == token
        # Measured: at most 0.045, on tokens as unlikely as e^-16.
        assert entry.logprob == pytest.approx(float(row[token]), abs=0.2)
        assert len(entry.top) == 5


def test_end_tokens_and_minimum_lengths_are_the_contracts(exports: Exports, tokenizer: Tokenizer) -> None:
    (end,) = tokenizer.end_token_ids
    prompt = tokenizer.encode("The capital of France is", add_special_tokens=False)
    ending: dict[str, Any] = {"temperature": 0, "logit_bias": {end: 100.0}}

    async def scenario() -> None:
        async with serving(exports.base) as engine:
            ignored = await answer(engine, prompt, max_tokens=4, **ending)
            assert ignored == Answer([end] * 4, "length", []), "what does not stop is a token like others"
            held = await answer(engine, prompt, min_tokens=3, stop_token_ids=(end,), **ending)
            assert (held.ids[3:], held.reason) == ([end], "stop")
            assert end not in held.ids[:3]
            plain = await answer(engine, prompt, temperature=0, max_tokens=8)
            third = plain.ids[2]
            stopped = await answer(engine, prompt, temperature=0, max_tokens=8, stop_token_ids=(third,))
            assert stopped == Answer(plain.ids[: plain.ids.index(third) + 1], "stop", [])
            drawn = [await answer(engine, prompt, max_tokens=8, seed=seed) for seed in (3, 3, 4)]
            assert drawn[0] == drawn[1] != drawn[2]
            longest = await answer(engine, prompt * 101, temperature=0, stop_token_ids=())
            assert (len(longest.ids), longest.reason) == (512 - 101 * len(prompt), "length")

    run(scenario())


def test_it_tells_what_it_found_in_its_cache(exports: Exports, prompts: list[list[int]]) -> None:
    async def scenario() -> None:
        async with serving(exports.base, options=ServeOptions(context_length=512, max_running=1)) as engine:
            told = [[chunk.cached_tokens async for chunk in engine.generate(each)] for each in requests]
            assert told == [[0, None], [len(prompts[0]) - 1, None]]

    requests = [
        GenerationRequest(id=name, prompt_ids=prompts[0], params=SamplingParams(temperature=0, max_tokens=2))
        for name in "ab"
    ]
    run(scenario())


def test_a_cancelled_sequence_frees_its_slot(exports: Exports, prompts: list[list[int]]) -> None:
    async def scenario() -> None:
        async with serving(exports.base, options=ServeOptions(context_length=2048, max_running=1)) as engine:
            endless = GenerationRequest(id="a", prompt_ids=prompts[0], params=SamplingParams(temperature=0))
            async with aclosing(engine.generate(endless)) as chunks:
                await anext(chunks)
                waiting = asyncio.create_task(answer(engine, prompts[1], temperature=0, max_tokens=2))
                while (load := await engine.stats()).waiting == 0:
                    await asyncio.sleep(0.01)
                assert load.running == 1
                assert 0 < load.cache_usage < 1
                assert not waiting.done()
            assert len((await waiting).ids) == 2, "it had the only slot's 2,000 tokens to wait for"
            while (load := await engine.stats()).running:
                await asyncio.sleep(0.01)
            assert load.cache_usage == 0

    run(scenario())


def serving_processes(file: Path) -> list[int]:
    """Return the processes that have ``file`` on their command line, the guards before what they guard."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if os.fsencode(file) in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                    found.append(int(entry.name))
            except OSError:
                continue
    return sorted(found)


def test_it_is_started_again_when_it_is_killed(exports: Exports, prompts: list[list[int]]) -> None:
    async def scenario() -> None:
        async with serving(exports.base) as engine:
            before = await answer(engine, prompts[0], temperature=0, max_tokens=4)
            request = GenerationRequest(id="a", prompt_ids=prompts[0], params=SamplingParams(temperature=0))
            async with aclosing(engine.generate(request)) as chunks:
                await anext(chunks)
                os.kill(serving_processes(exports.base)[-1], signal.SIGKILL)
                with pytest.raises(EngineError):
                    async for _ in chunks:
                        pass
            while engine.ready:
                await asyncio.sleep(0.01)
            while not engine.ready:
                await asyncio.sleep(0.01)
            assert await answer(engine, prompts[0], temperature=0, max_tokens=4) == before

    run(scenario())
    assert not serving_processes(exports.base)


def test_nothing_is_left_when_this_process_is_killed(exports: Exports) -> None:
    script = f"""
import asyncio, shutil
from pathlib import Path
shutil.which = lambda _: None
from tuneserve.engines.kind import ServeOptions
from tuneserve.engines.llama_cpp import LlamaCpp
from tuneserve.sources import resolve

async def main():
    engine = await LlamaCpp().start(resolve({str(exports.base)!r}), (), ServeOptions(context_length=256), "demo")
    print("up", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        # The script is on its own command line, too.
        engine = [pid for pid in serving_processes(exports.base) if pid != owner.pid]
        assert engine
        handles = [os.pidfd_open(pid) for pid in engine]
        owner.kill()
    for handle in handles:
        assert select.select([handle], [], [], 30)[0], "a process outlived its owner"
        os.close(handle)
