"""Protects: vLLM, really installed and really run, serves merged models and unmerged adapters as they were trained.

The oracle is Transformers with PEFT's layers, unmerged, which shares no code with the export or with vLLM. It is
started twice, and once more by the supervision, because that takes most of the time.
"""

import asyncio
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

import tuneserve
from tuneserve.engines import environments
from tuneserve.engines.contract import Engine, GenerationRequest, Grammar, SamplingParams, TokenLogprob
from tuneserve.engines.kind import ServeOptions
from tuneserve.engines.vllm import Vllm
from tuneserve.errors import EngineError, RequestError
from tuneserve.parity._sides import open_side
from tuneserve.parity._stream import StreamedModel
from tuneserve.parity._thresholds import thresholds_for
from tuneserve.sources import resolve
from tuneserve.text import Tokenizer, open_chat_template, open_tokenizer

OWNER = Path(__file__).with_name("vllm_owner.py")
TICKETS = ("My parcel never came and I want my money back.", "How do I change my password?", "La app se cierra sola.")
LIMITS = thresholds_for("merged_16bit")
TOP = 100
SECONDS = 900


class Answer(msgspec.Struct):
    """What a sequence came to."""

    ids: list[int]
    reason: str | None
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob] = []


class Served:
    """The engine that the tests share, and the loop in which it lives."""

    def __init__(self, directory: Path, logs: Path) -> None:
        self.directory = directory
        self._runner = asyncio.Runner()
        options = ServeOptions(context_length=512, max_running=4, logs=logs)
        assert Vllm().check(resolve(directory), (), options).problems == ()
        self.engine: Engine = self.run(Vllm().start(resolve(directory), (), options, "tuned"))

    def run(self, scenario: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(asyncio.wait_for(scenario, SECONDS))

    def answer(self, ids: list[int], **params: Any) -> Answer:
        found: Answer = self.run(answer(self.engine, ids, **params))
        return found

    def close(self) -> None:
        self.run(self.engine.close())
        self._runner.close()


@pytest.fixture(scope="module", autouse=True)
def _installed() -> Iterator[None]:
    environments.install("vllm", lambda _: None)
    with pytest.MonkeyPatch.context() as patch:
        # Two that wait for each other in a loop crawl while the machine is busy with other tests.
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("served")
    tuneserve.export("demo:tickets", directory / "merged", method="merged_16bit", verify=False)
    found = Served(directory / "merged", directory / "logs")
    yield found
    found.close()
    assert not processes_of(found.directory)


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


@pytest.fixture(scope="module")
def trained() -> StreamedModel:
    return StreamedModel(open_side(resolve("demo:tickets")), resident=True)


@pytest.fixture(scope="module")
def untrained() -> StreamedModel:
    return StreamedModel(open_side(resolve("demo")), resident=True)


async def answer(engine: Engine, ids: list[int], *, name: str = "a", **params: Any) -> Answer:
    found = Answer([], None)
    request = GenerationRequest(id=name, prompt_ids=ids, params=SamplingParams(**params))
    async for chunk in engine.generate(request):
        found.ids += chunk.token_ids
        found.logprobs += chunk.logprobs or []
        found.prompt_logprobs += chunk.prompt_logprobs or []
        found.reason = chunk.finish_reason
    return found


def reference(model: StreamedModel, ids: list[int]) -> torch.Tensor:
    """Return the log-probabilities (tokens, vocabulary) after each of ``ids``."""
    rows = torch.tensor([ids])
    return model.logits(rows, torch.ones_like(rows, dtype=torch.bool)).log_softmax(-1)


def divergences(expected: torch.Tensor, got: list[TokenLogprob]) -> list[float]:
    """Return the KL divergence at each place, with all but the likeliest tokens taken together, which bounds it."""
    found = []
    for row, entry in zip(expected, got, strict=True):
        tokens, values = zip(*entry.top, strict=True)
        theirs, ours = row[list(tokens)].double(), torch.tensor(values, dtype=torch.float64)
        rest = [(1 - part.exp().sum()).clamp_min(1e-9) for part in (theirs, ours)]
        found.append(float((theirs.exp() * (theirs - ours)).sum() + rest[0] * (rest[0] / rest[1]).log()))
    return found


def new_tokens(model: StreamedModel, prompt: list[int], got: Answer) -> list[float]:
    return divergences(reference(model, prompt + got.ids[:-1])[len(prompt) - 1 :], got.logprobs)


def processes_of(directory: Path) -> list[int]:
    """Return the processes that have ``directory`` on their command line, the guard before what it guards."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if os.fsencode(directory) in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                    found.append(int(entry.name))
            except OSError:
                continue
    return sorted(found)


def descendants(pid: int) -> list[int]:
    """Return all processes below ``pid``."""
    found, parents = [pid], {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found[1:]


def test_the_merged_model_has_the_probabilities_of_the_unmerged_reference(
    served: Served, prompts: list[list[int]], tokenizer: Tokenizer, trained: StreamedModel, untrained: StreamedModel
) -> None:
    info = served.engine.info
    assert (info.engine, info.device, info.dtype, info.context_length) == ("vllm", "cpu", "bfloat16", 512)
    assert info.vocab_size == 49152
    params: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "logprobs": TOP}
    params["stop_token_ids"] = tuple(tokenizer.end_token_ids)

    async def together() -> list[Answer]:
        asked = [answer(served.engine, prompt, name=str(index), **params) for index, prompt in enumerate(prompts)]
        return await asyncio.gather(*asked)

    got: list[Answer] = served.run(together())
    for one in got:
        assert [entry.token_id for entry in one.logprobs] == one.ids
        assert all(entry.top[0] == (entry.token_id, entry.logprob) for entry in one.logprobs), "it is greedy"
    measured = [kl for prompt, one in zip(prompts, got, strict=True) for kl in new_tokens(trained, prompt, one)]
    assert sum(measured) / len(measured) < LIMITS.mean_kl
    assert max(measured) < LIMITS.max_kl
    unlike = [kl for prompt, one in zip(prompts, got, strict=True) for kl in new_tokens(untrained, prompt, one)]
    assert sum(unlike) / len(unlike) > 10 * LIMITS.mean_kl, "a lost adapter would be seen"


def test_it_tells_the_probabilities_of_a_prompt(
    served: Served, prompts: list[list[int]], trained: StreamedModel
) -> None:
    prompt = prompts[1]
    got = served.answer(prompt, temperature=0, max_tokens=2, logprobs=0, prompt_logprobs=TOP)
    assert [entry.token_id for entry in got.prompt_logprobs] == prompt[1:]
    assert [entry.token_id for entry in got.logprobs] == got.ids
    assert all(entry.top == [] for entry in got.logprobs)
    measured = divergences(reference(trained, prompt)[:-1], got.prompt_logprobs)
    # Measured: 0.0044 and 0.054; vLLM computes in bfloat16, which tells most where a prompt has just begun.
    assert sum(measured) / len(measured) < 5 * LIMITS.mean_kl
    assert max(measured) < LIMITS.max_kl
    alone = served.answer(prompt, temperature=0, max_tokens=1, prompt_logprobs=1)
    assert alone.logprobs == []
    assert [len(entry.top) for entry in alone.prompt_logprobs] == [1] * (len(prompt) - 1)


def test_it_tells_what_it_found_in_its_cache(served: Served) -> None:
    async def told(name: str) -> list[int | None]:
        # Unlike those of other tests from the first token on; on a CPU vLLM's blocks have 128 tokens.
        params = SamplingParams(temperature=0, max_tokens=3)
        request = GenerationRequest(id=name, prompt_ids=[*range(500, 800)], params=params)
        return [chunk.cached_tokens async for chunk in served.engine.generate(request)]

    first, second = served.run(told("first")), served.run(told("second"))
    assert first == [None, None, 0]
    assert second == [None, None, 256]


def test_ends_lengths_seeds_and_biases_are_the_contracts(served: Served, tokenizer: Tokenizer) -> None:
    (end,) = tokenizer.end_token_ids
    prompt = tokenizer.encode("The capital of France is", add_special_tokens=False)
    ending: dict[str, Any] = {"temperature": 0, "logit_bias": {end: 100.0}}
    ignored = served.answer(prompt, max_tokens=4, **ending)
    assert ignored == Answer([end] * 4, "length"), "what does not stop is a token like others"
    held = served.answer(prompt, min_tokens=3, stop_token_ids=(end,), **ending)
    assert (held.ids[3:], held.reason) == ([end], "stop")
    assert end not in held.ids[:3]
    drawn = [served.answer(prompt, max_tokens=6, seed=seed) for seed in (3, 3, 2**64 - 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    long = (prompt * 110)[:509]
    assert served.answer(long, temperature=0).reason == "length"
    assert len(served.answer(long, temperature=0, max_tokens=9).ids) == 3, "the context is full"


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (Grammar(kind="choice", text='["blue whale", "red fox"]'), "blue whale|red fox"),
        (Grammar(kind="regex", text="[0-9]{3}-[a-f]"), "[0-9]{3}-[a-f]"),
        (Grammar(kind="lark", text='start: "yes" | "no" /[!?]/'), "yes|no[!?]"),
        (Grammar(kind="json_schema", text='{"enum": [17, "seventeen"]}'), '17|"seventeen"'),
    ],
    ids=lambda value: value.kind if isinstance(value, Grammar) else "",
)
def test_output_keeps_to_a_grammar(served: Served, tokenizer: Tokenizer, grammar: Grammar, text: str) -> None:
    prompt = tokenizer.encode("Answer:", add_special_tokens=False)
    stops = tuple(tokenizer.end_token_ids)
    got = served.answer(prompt, temperature=0, max_tokens=16, grammar=grammar, stop_token_ids=stops)
    assert got.reason == "stop"
    assert re.fullmatch(text, tokenizer.decode(got.ids[:-1]).strip())


def test_what_is_at_fault_is_told_with_its_name(served: Served) -> None:
    with pytest.raises(RequestError, match="temperature must be in") as caught:
        served.answer([5, 6], temperature=3.0)
    assert caught.value.param == "temperature"
    with pytest.raises(RequestError, match="logit_bias has token ids outside") as caught:
        served.answer([5, 6], logit_bias={60000: 1.0})
    assert caught.value.param == "logit_bias"
    with pytest.raises(RequestError, match="unclosed character class"):
        served.answer([5, 6], grammar=Grammar(kind="regex", text="[0-9"))
    assert served.answer([5, 6], temperature=0, max_tokens=1).reason == "length", "it serves on"


def test_a_cancelled_sequence_frees_what_it_held(served: Served, prompts: list[list[int]]) -> None:
    async def scenario() -> None:
        endless = GenerationRequest(id="endless", prompt_ids=prompts[0], params=SamplingParams(temperature=0))
        async with aclosing(served.engine.generate(endless)) as chunks:
            await anext(chunks)
            # The gauges are set after a step.
            while not (load := await served.engine.stats()).running or not load.cache_usage:
                await asyncio.sleep(0.02)
            assert 0 < load.cache_usage < 1
        await answer(served.engine, prompts[1], name="after", temperature=0, max_tokens=1)
        while (load := await served.engine.stats()).running:
            await asyncio.sleep(0.02)
        assert load.cache_usage == 0

    served.run(scenario())


def test_it_is_started_again_when_it_is_killed(served: Served, prompts: list[list[int]]) -> None:
    async def scenario() -> None:
        engine = served.engine
        before = await answer(engine, prompts[0], temperature=0, max_tokens=4)
        request = GenerationRequest(id="cut", prompt_ids=prompts[0], params=SamplingParams(temperature=0))
        async with aclosing(engine.generate(request)) as chunks:
            await anext(chunks)
            os.kill(processes_of(served.directory)[-1], signal.SIGKILL)
            with pytest.raises(EngineError):
                async for _ in chunks:
                    pass
        while engine.ready:
            await asyncio.sleep(0.01)
        while not engine.ready:
            await asyncio.sleep(0.05)
        assert await answer(engine, prompts[0], temperature=0, max_tokens=4) == before

    served.run(scenario())


def test_an_unmerged_adapter_is_chosen_by_each_request_and_nothing_outlives_its_owner(
    prompts: list[list[int]], trained: StreamedModel, untrained: StreamedModel
) -> None:
    """Both requests share their steps, in which vLLM's code for CPUs gives the base the adapter of the last slot."""
    command = [sys.executable, str(OWNER), json.dumps(prompts[1])]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        try:
            of_base, of_adapter = msgspec.json.decode(owner.stdout.readline(), type=tuple[Answer, Answer])
            below = descendants(owner.pid)
            assert len(below) >= 3, "the guard, the server and its engine at least"
            handles = [os.pidfd_open(pid) for pid in below]
        finally:
            owner.kill()
    for handle in handles:
        assert select.select([handle], [], [], 30)[0], "a process outlived its owner"
        os.close(handle)
    for model, got in ((untrained, of_base), (trained, of_adapter)):
        measured = new_tokens(model, prompts[1], got)
        assert sum(measured) / len(measured) < LIMITS.mean_kl
        assert max(measured) < LIMITS.max_kl
    assert of_base.ids != of_adapter.ids
