"""Is a running engine serving the model that was trained? Asked through the contract itself, of token ids.

The reference runs in a process of its own (:mod:`tuneserve.parity.probing`), which this module starts by its name and
does not import. Of each distribution an engine tells its likeliest tokens, so what is measured is a lower bound.
"""

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from uuid import uuid4

import msgspec

from tuneserve.engines.contract import Engine, GenerationRequest, SamplingParams, TokenLogprob
from tuneserve.errors import EngineError, InputError, ParityError
from tuneserve.sources import ResolvedSource

_MODULE = "tuneserve.parity.probing"
# What OpenAI, vLLM and Ollama allow at most.
_COUNT = 20
_PREFIXES = 4
_LINE_BYTES = 2**24
_Top = list[tuple[int, float]]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """The reference: a :class:`~tuneserve.sources.ResolvedSource`, and how what is served was made of it.

    ``method`` None is the method that the source itself was made by.
    """

    name: str
    model_dir: str
    tokenizer_dir: str
    adapter_dir: str | None = None
    weights_file: str | None = None
    base_name: str | None = None
    source: str = ""
    method: str | None = None

    @classmethod
    def of(cls, source: ResolvedSource, method: str | None) -> "Check":
        """Return the check of what ``method`` made of ``source``."""
        return cls(
            name=source.name,
            model_dir=str(source.model_dir),
            tokenizer_dir=str(source.tokenizer_dir),
            adapter_dir=None if source.adapter_dir is None else str(source.adapter_dir),
            weights_file=None if source.weights_file is None else str(source.weights_file),
            base_name=source.base_name,
            source=source.source,
            method=method,
        )

    def resolved(self) -> ResolvedSource:
        """Return the source."""
        return ResolvedSource(
            source=self.source,
            name=self.name,
            model_dir=Path(self.model_dir),
            adapter_dir=None if self.adapter_dir is None else Path(self.adapter_dir),
            tokenizer_dir=Path(self.tokenizer_dir),
            base_name=self.base_name,
            weights_file=None if self.weights_file is None else Path(self.weights_file),
        )


class Prompts(msgspec.Struct, frozen=True, tag=True):
    """The token ids of each probe."""

    prompts: list[list[int]]


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """The likeliest tokens after ``position`` of the probe ``prompt``, with their log-probabilities."""

    prompt: int
    position: int
    top: _Top


class Answers(msgspec.Struct, frozen=True):
    """What the engine says of the probes."""

    answers: list[Answer]


class Verdict(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The report in short; ``mean_kl`` is in nats, a lower bound."""

    passed: bool
    failures: list[str]
    diagnosis: list[str]
    mean_kl: float
    agreement: float
    prompts: int
    positions: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The reference could not be loaded."""

    message: str


async def verify_engine(engine: Engine, source: ResolvedSource, method: str | None, adapter: str | None) -> Verdict:
    """Compare what ``engine`` serves under ``adapter`` with ``source``, of which ``method`` made it.

    Raises:
        ParityError: it is another model.
        InputError: the source cannot be loaded as a reference.
        EngineError: the engine gives no log-probabilities, or fails.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", _MODULE, msgspec.json.encode(Check.of(source, method)).decode(),
        stdin=PIPE, stdout=PIPE, limit=_LINE_BYTES, start_new_session=True,
    )  # fmt: skip
    try:
        prompts = await _receive(process)
        if isinstance(prompts, Failed):
            raise InputError(f"parity cannot be checked: {prompts.message}")
        assert isinstance(prompts, Prompts)
        answers = await _ask(engine, prompts.prompts, adapter)
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(Answers(answers)) + b"\n")
        await process.stdin.drain()
        verdict = await _receive(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if isinstance(verdict, Failed):
        raise InputError(f"parity cannot be checked: {verdict.message}")
    assert isinstance(verdict, Verdict)
    if not verdict.passed:
        broke = f"; what broke: {'; '.join(verdict.diagnosis)}" if verdict.diagnosis else ""
        raise ParityError(
            f"what {engine.info.engine} serves as {adapter or source.name} is not the model that was trained "
            f"({'; '.join(verdict.failures)}){broke}; it was stopped, and --no-verify would serve it all the same."
        )
    return verdict


async def _receive(process: Process) -> Prompts | Verdict | Failed:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise EngineError(
            "the check of parity ended without a verdict; see its lines above, or leave it out with --no-verify."
        )
    message: Prompts | Verdict | Failed = msgspec.json.decode(line, type=Prompts | Verdict | Failed)
    return message


async def _ask(engine: Engine, prompts: Sequence[Sequence[int]], adapter: str | None) -> list[Answer]:
    info, answers = engine.info, []
    whole = "prompt_logprobs" not in info.lacks
    for index, prompt in enumerate(prompts):
        # Of the context, one token is for the answer.
        ids = list(prompt[: info.context_length - 1])
        for length in [len(ids)] if whole else _lengths(len(ids)):
            new, old = await _probe(engine, ids[:length], adapter, whole=whole)
            answers += [Answer(index, position, each.top) for position, each in enumerate(old)]
            answers += [Answer(index, length - 1, each.top) for each in new[:1]]
    if not any(answer.top for answer in answers):
        raise EngineError(
            f"{info.engine} gives no log-probabilities, so parity cannot be checked; leave it out with --no-verify."
        )
    return answers


async def _probe(
    engine: Engine, ids: list[int], adapter: str | None, *, whole: bool
) -> tuple[list[TokenLogprob], list[TokenLogprob]]:
    params = SamplingParams(max_tokens=1, temperature=0, logprobs=_COUNT, prompt_logprobs=_COUNT if whole else None)
    request = GenerationRequest(id=uuid4().hex, prompt_ids=ids, params=params, adapter=adapter)
    new: list[TokenLogprob] = []
    old: list[TokenLogprob] = []
    async with aclosing(engine.generate(request)) as chunks:
        async for chunk in chunks:
            new += chunk.logprobs or []
            old += chunk.prompt_logprobs or []
    return new, old


def _lengths(length: int) -> list[int]:
    return sorted({max(1, length * part // _PREFIXES) for part in range(1, _PREFIXES + 1)})
