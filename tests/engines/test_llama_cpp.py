"""Protects: what llama.cpp can serve is told beforehand, and its server's protocol becomes the engine contract."""

import asyncio
import json
import sys
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tuneserve.checkpoint import open_gguf
from tuneserve.engines import environments
from tuneserve.engines._llama_cpp_grammar import gbnf_text, llguidance_text
from tuneserve.engines._llama_cpp_pieces import Pieces
from tuneserve.engines._llama_cpp_request import request_body
from tuneserve.engines.contract import (
    Engine,
    EngineStats,
    GenerationRequest,
    Grammar,
    SamplingParams,
    TokenChunk,
    TokenLogprob,
)
from tuneserve.engines.environments import Environment
from tuneserve.engines.kind import NamedAdapter, Preflight, ServeOptions
from tuneserve.engines.llama_cpp import LlamaCpp
from tuneserve.errors import EngineError, InputError, RequestError
from tuneserve.sources import ResolvedSource

STAND_IN = Path(__file__).with_name("llama_server_stand_in.py")
# Byte-level spellings: F0 9F, A6, 99 make up U+1F999; 40 and 41 split it otherwise.
TOKENS = ["<|end|>", "a", "b", "ðŁ", "¦", "Ļ", "c", "ð", "Ł¦"]
END, A, B, FIRST, SECOND, THIRD = range(6)


def write_gguf(path: Path, tokens: list[str] = TOKENS, **fields: Any) -> Path:
    writer = gguf.GGUFWriter(path, fields.get("architecture", "llama"))
    writer.add_context_length(256)
    writer.add_tokenizer_model(fields.get("model", "gpt2"))
    writer.add_token_list(tokens)
    writer.add_token_types(fields.get("types", [gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(tokens) - 1)))
    if "kind" in fields:
        writer.add_type(fields["kind"])
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def source(tmp_path: Path) -> ResolvedSource:
    file = write_gguf(tmp_path / "model.gguf")
    return ResolvedSource(str(file), "model", tmp_path, None, tmp_path, None, weights_file=file)


@pytest.fixture
def adapter(tmp_path: Path) -> NamedAdapter:
    directory = tmp_path / "adapter"
    directory.mkdir()
    write_gguf(directory / "adapter.gguf", kind="adapter")
    return NamedAdapter("mine", directory)


OPTIONS = ServeOptions(program=STAND_IN, context_length=128, max_running=2)


class Recorded:
    """The stand-in's answers, and what it was asked."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "answers.json"

    def options(self, *answers: dict[str, Any]) -> ServeOptions:
        self._path.write_text(json.dumps(answers))
        arguments = ("--answers", str(self._path))
        return ServeOptions(program=STAND_IN, context_length=128, max_running=2, arguments=arguments)

    @property
    def started(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._path.with_suffix(".started").read_text())
        return found

    @property
    def asked(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._path.with_suffix(".asked").read_text().splitlines()]


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path)


def token(index: int, total: int, text: str = "x", **more: Any) -> dict[str, Any]:
    return {"content": text, "tokens": [index], "tokens_predicted": total, "stop": False, **more}


def final(total: int, why: str) -> dict[str, Any]:
    return {"content": "", "tokens": [], "tokens_predicted": total, "stop": True, "stop_type": why}


def probability(index: int, logprob: float, data: bytes = b"", *others: tuple[int, float]) -> dict[str, Any]:
    top = [{"id": other, "logprob": value} for other, value in others]
    entry = {"id": index, "logprob": logprob, "bytes": list(data), "top_logprobs": top}
    return {"completion_probabilities": [entry]}


def request(adapter: str | None = None, prompt: tuple[int, ...] = (A, B), **params: Any) -> GenerationRequest:
    return GenerationRequest(id="r", prompt_ids=list(prompt), params=SamplingParams(**params), adapter=adapter)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 300))


def answer_of(
    source: ResolvedSource, options: ServeOptions, asked: GenerationRequest, *adapters: NamedAdapter
) -> list[TokenChunk]:
    """Return the chunks that the stand-in's answers become."""
    chunks: list[TokenChunk] = []

    async def scenario() -> None:
        engine = await LlamaCpp().start(source, adapters, options, "model")
        try:
            chunks.extend([chunk async for chunk in engine.generate(asked)])
        finally:
            await engine.close()

    run(scenario())
    return chunks


def test_a_gguf_file_is_served_with_adapters_that_are_such(source: ResolvedSource, adapter: NamedAdapter) -> None:
    assert LlamaCpp().check(source, [adapter], OPTIONS) == Preflight()


def test_what_is_in_safetensors_is_exported_first(tmp_path: Path, source: ResolvedSource) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    plain = ResolvedSource("m", "m", tmp_path, None, tmp_path, None)
    peft = NamedAdapter("mine", tmp_path)
    found = LlamaCpp().check(plain, [peft], OPTIONS)
    assert (found.export, found.adapter_export, len(found.problems)) == ("gguf:q8_0", "gguf-lora", 2)
    over_gguf = ResolvedSource("m", "m", tmp_path, tmp_path, tmp_path, "b", weights_file=source.weights_file)
    assert LlamaCpp().check(over_gguf, [], OPTIONS).export == "gguf:q8_0"
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    found = LlamaCpp().check(plain, [], OPTIONS)
    assert found.export is None
    assert "mamba" in found.problems[0]
    with pytest.raises(InputError, match="mamba"):
        asyncio.run(LlamaCpp().start(plain, [], OPTIONS, "m"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"tensor_parallel": 2}, "tensor parallel"), ({"context_length": 257}, "256"), ({"context_length": 1}, "2 to")],
)
def test_all_that_it_cannot_do_is_a_problem(source: ResolvedSource, changes: dict[str, Any], said: str) -> None:
    (problem,) = LlamaCpp().check(source, [], ServeOptions(program=STAND_IN, **changes)).problems
    assert said in problem


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": "float16"}, "leave --dtype out"),
        ({"max_running": 0}, "choose 1 or more"),
        ({"program": Path(__file__)}, "is not a program"),
        ({"program": Path("/nowhere/llama-server")}, "is not a program"),
    ],
)
def test_an_option_that_it_does_not_have_is_refused(source: ResolvedSource, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        LlamaCpp().check(source, [], ServeOptions(**{"program": STAND_IN, **changes}))


def test_where_there_is_no_program_it_says_how_to_install_one(
    source: ResolvedSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EngineError, match=r"tuneserve engines install llama\.cpp"):
        LlamaCpp().check(source, [], ServeOptions())
    installed = Environment("llama.cpp", Path(sys.executable), {"xllamacpp": "1.2"}, "xllamacpp")
    monkeypatch.setattr(environments, "find", lambda _: installed)
    assert LlamaCpp().check(source, [], ServeOptions()).notes
    with pytest.raises(InputError, match="takes no arguments"):
        LlamaCpp().check(source, [], ServeOptions(arguments=("--threads", "3")))
    (tmp_path / "llama-server").symlink_to(STAND_IN)
    assert LlamaCpp().check(source, [], ServeOptions(arguments=("--threads", "3"))) == Preflight()


def test_the_command_line_and_what_runs_are_as_asked(
    source: ResolvedSource, adapter: NamedAdapter, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_ARG_N_PARALLEL", "7")
    found: list[Any] = []

    async def scenario() -> None:
        engine: Engine = await LlamaCpp().start(source, [adapter], recorded.options(), "model")
        found.extend([engine.info, engine.ready, await engine.stats()])
        await engine.close()
        found.append(engine.ready)

    run(scenario())
    info, ready, stats, after = found
    arguments = recorded.started["arguments"]
    port = arguments[arguments.index("--port") + 1]
    assert " ".join(arguments).startswith(
        f"--model {source.weights_file} --host 127.0.0.1 --port {port} --ctx-size 256 --parallel 2 "
        "--chat-template chatml --no-context-shift --slots --metrics --n-gpu-layers 999 "
        f"--lora {adapter.directory / 'adapter.gguf'} --lora-init-without-apply --answers "
    )
    settings = recorded.started["settings"]
    assert settings.keys() == {"LLAMA_API_KEY", "LLAMA_ARG_CACHE_RAM"}
    assert settings["LLAMA_API_KEY"] not in arguments
    assert (info.engine, info.version, info.context_length, info.vocab_size) == ("llama.cpp", "b11549-abc", 128, 9)
    assert (info.dtype, info.device, info.weight_bytes, info.max_running) == ("f32", "CUDA0", 9 * 4 * 4, 2)
    assert info.adapters == ("mine",)
    assert {"presence_penalty", "grammar:regex"} <= set(info.lacks)
    assert (ready, after) == (True, False)
    assert stats == EngineStats(running=1, waiting=3, cache_usage=16 / 256)


def test_every_setting_goes_over_in_the_contracts_meaning() -> None:
    params: dict[str, Any] = {
        "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "typical_p": 0.8, "repetition_penalty": 1.1,
        "logit_bias": {A: -1.5, B: -float("inf")}, "seed": 2**40, "stop_token_ids": (END,), "logprobs": 0,
    }  # fmt: skip
    common: dict[str, Any] = {"context_length": 128, "adapters": ("one", "two"), "grammars": gbnf_text}
    body = request_body(request("two", **params), [B], 5, held=True, **common)
    assert body == {
        "prompt": [A, B, B], "n_predict": 5, "stream": True, "return_tokens": True, "cache_prompt": True,
        "timings_per_token": True,
        "temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.8,
        "repeat_penalty": 1.1, "repeat_last_n": 128, "presence_penalty": 0, "frequency_penalty": 0,
        "dynatemp_range": 0, "mirostat": 0,
        "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p", "typ_p"],
        "logit_bias": [[A, -1.5], [B, False], [END, False]], "seed": (2**40 + 1) % (2**31 - 1), "n_probs": 1,
        "lora": [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}],
    }  # fmt: skip
    plain = request_body(request(temperature=0), [], 5, held=False, **common | {"adapters": ()})
    assert plain["samplers"] == ["penalties", "temperature"]
    assert plain["repeat_last_n"] == 0
    assert not {"seed", "n_probs", "lora", "grammar"} & plain.keys()
    with pytest.raises(RequestError, match="finite"):
        request_body(request(logit_bias={A: float("inf")}), [], 5, held=False, **common)


def test_tokens_come_as_they_are_sampled_until_a_stop_token(source: ResolvedSource, recorded: Recorded) -> None:
    events = [token(A, 1), token(B, 2), token(A, 3), final(3, "limit")]
    assert answer_of(source, recorded.options({"events": events}), request(stop_token_ids=(B,))) == [
        TokenChunk(token_ids=[A]),
        TokenChunk(token_ids=[B], finish_reason="stop"),
    ]
    assert recorded.asked[0]["n_predict"] == 126, "as many as the context has room for"


def test_an_end_token_that_does_not_stop_is_gone_on_from(source: ResolvedSource, recorded: Recorded) -> None:
    first = [token(A, 1), token(END, 2), final(2, "eos")]
    options = recorded.options({"events": first}, {"events": [token(B, 1), final(1, "limit")]})
    chunks = answer_of(source, options, request(max_tokens=3, seed=9))
    assert [chunk.token_ids for chunk in chunks] == [[A], [END], [B]]
    assert chunks[-1].finish_reason == "length"
    assert [(asked["prompt"], asked["n_predict"], asked["seed"]) for asked in recorded.asked] == [
        ([A, B], 3, 9),
        ([A, B, A, END], 1, 11),
    ]


def test_what_was_in_the_cache_is_told_once(source: ResolvedSource, recorded: Recorded) -> None:
    found, again = {"cache_n": 1, "prompt_n": 1}, {"cache_n": 3, "prompt_n": 1}
    first = [token(A, 1, timings=found), token(END, 2, timings=found), final(2, "eos")]
    options = recorded.options({"events": first}, {"events": [token(B, 1, timings=again), final(1, "limit")]})
    chunks = answer_of(source, options, request(max_tokens=3))
    assert [chunk.cached_tokens for chunk in chunks] == [1, None, None]


def test_stop_tokens_are_held_back_until_the_minimum(source: ResolvedSource, recorded: Recorded) -> None:
    options = recorded.options(
        {"events": [token(A, 1), token(A, 2), final(2, "limit")]}, {"events": [token(END, 1), final(1, "eos")]}
    )
    chunks = answer_of(source, options, request(min_tokens=2, max_tokens=9, stop_token_ids=(END,)))
    assert chunks[-1] == TokenChunk(token_ids=[END], finish_reason="stop")
    assert [(asked["n_predict"], asked["logit_bias"]) for asked in recorded.asked] == [(2, [[END, False]]), (7, [])]


def test_tokens_that_the_stream_leaves_out_follow_from_the_text(source: ResolvedSource, recorded: Recorded) -> None:
    events = [token(A, 1, "a"), token(THIRD, 4, "🦙"), final(4, "limit")]
    chunks = answer_of(source, recorded.options({"events": events}), request(max_tokens=4))
    assert [chunk.token_ids for chunk in chunks] == [[A], [FIRST, SECOND, THIRD]]


def test_their_log_probabilities_are_asked_for(source: ResolvedSource, recorded: Recorded) -> None:
    event = token(THIRD, 3, "", **probability(THIRD, -0.3, "🦙".encode(), (THIRD, -0.3), (A, -2.0)))
    probes = [probability(A, -9.0, b"a", (B, -0.5), (FIRST, -1.0)), probability(A, -9.0, b"a", (A, -1.5))]
    found = probability(A, -9.0, b"a", (SECOND, -4.0))
    answers = [{"status": 200, "body": body} for body in (*probes, found)]
    options = recorded.options({"events": [event, final(3, "limit")]}, *answers)
    (chunk,) = answer_of(source, options, request(max_tokens=3, logprobs=1))
    assert chunk.logprobs == [
        TokenLogprob(FIRST, -1.0, [(B, -0.5)]),
        TokenLogprob(SECOND, -4.0, [(SECOND, -4.0)]),
        TokenLogprob(THIRD, -0.3, [(THIRD, -0.3)]),
    ]
    assert [asked["prompt"] for asked in recorded.asked] == [[A, B], [A, B], [A, B, FIRST], [A, B, FIRST]]
    assert recorded.asked[-1]["n_probs"] == len(TOKENS), "the first thousand did not have it"


def test_what_a_limit_cuts_within_a_character_is_asked_for_whole(source: ResolvedSource, recorded: Recorded) -> None:
    whole = {"status": 200, "body": {**final(2, "limit"), "tokens": [FIRST, SECOND]}}
    options = recorded.options({"events": [token(A, 1), final(3, "limit")]}, whole)
    chunks = answer_of(source, options, request(max_tokens=3))
    assert chunks[-1] == TokenChunk(token_ids=[FIRST, SECOND], finish_reason="length")
    assert (recorded.asked[1]["stream"], recorded.asked[1]["n_predict"]) == (False, 2)


@pytest.mark.parametrize("why", ["eos", "limit"])
def test_a_finished_grammar_ends_the_sequence(source: ResolvedSource, recorded: Recorded, why: str) -> None:
    events = [token(A, 1), final(1, why)]
    choice = Grammar(kind="choice", text='["a"]')
    chunks = answer_of(source, recorded.options({"events": events}), request(grammar=choice))
    assert chunks[-1].finish_reason == {"eos": "stop", "limit": "length"}[why]
    assert recorded.asked[0]["grammar"] == 'root ::= "a"'


def test_what_goes_wrong_is_an_error_of_the_contract(source: ResolvedSource, recorded: Recorded) -> None:
    unknown: list[tuple[dict[str, Any], GenerationRequest]] = [
        ({"events": [token(A, 1)]}, request()),
        ({"events": [final(0, "limit")]}, request()),
        ({"events": [["what"]]}, request()),
        ({"events": [{"tokens": ["a"], "tokens_predicted": 1}]}, request()),
        ({"events": [{"tokens": [A], "tokens_predicted": 2}]}, request()),
        ({"events": [token(A, 1, completion_probabilities=[{}])]}, request(logprobs=2)),
        ({"events": [token(A, 2, "ab", completion_probabilities=[{}])]}, request()),
    ]
    cases: list[tuple[dict[str, Any], GenerationRequest, type[Exception], str]] = [
        (
            {"status": 400, "body": {"error": {"code": 400, "message": "no sampler"}}},
            request(),
            RequestError,
            "no samp",
        ),
        (
            {"status": 500, "body": {"error": {"code": 500, "message": "no memory"}}},
            request(),
            EngineError,
            "no memory",
        ),
        ({"events": [{"error": {"code": 500, "message": "Context full."}}]}, request(), EngineError, "Context full"),
        ({"events": [{"error": {"code": 400, "message": "too long"}}]}, request(), RequestError, "too long"),
        ({"events": [token(A, 1)], "breaks": True}, request(), EngineError, "broke off"),
        *((answer, asked, EngineError, "cannot be read") for answer, asked in unknown),
    ]

    async def scenario() -> None:
        engine = await LlamaCpp().start(source, [], recorded.options(*(case[0] for case in cases)), "model")
        for _, asked, error, said in cases:
            with pytest.raises(error, match=said):
                async for _ in engine.generate(asked):
                    pass
        assert engine.ready
        await engine.close()

    run(scenario())
    assert len(recorded.asked) == len(cases)


def test_what_it_cannot_do_is_refused_before_it_is_asked(source: ResolvedSource, recorded: Recorded) -> None:
    choice = Grammar(kind="choice", text='["a"]')
    refused = {
        "temperature": request(temperature=-1),
        "adapter": request("other"),
        "prompt": request(prompt=()),
        "stop_token_ids": request(stop_token_ids=(9,)),
        "logit_bias": request(logit_bias={-1: 1.0}),
        "presence_penalty": request(presence_penalty=0.5),
        "frequency_penalty": request(frequency_penalty=0.5),
        "bad_words": request(bad_words=((A,),)),
        "prompt_logprobs": request(prompt_logprobs=0),
        "grammar": request(grammar=Grammar(kind="regex", text="a")),
        "min_tokens": request(min_tokens=2, grammar=choice),
    }
    found: dict[str, str | None] = {}

    async def scenario() -> None:
        engine = await LlamaCpp().start(source, [], recorded.options(), "model")
        for name, asked in refused.items():
            with pytest.raises(RequestError) as caught:
                await anext(engine.generate(asked))
            found[name] = caught.value.param
        for ids in ((A,) * 128, (len(TOKENS),), (-1,)):
            with pytest.raises(RequestError, match="prompt"):
                await anext(engine.generate(request(prompt=ids)))
        await engine.close()

    run(scenario())
    assert found == {name: name for name in refused}


def test_the_pieces_of_a_vocabulary_are_llama_cpps(tmp_path: Path) -> None:
    kinds = gguf.TokenType
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.BYTE, kinds.BYTE, kinds.NORMAL, kinds.USER_DEFINED, kinds.BYTE]
    tokens = ["<unk>", "<s>", "<0xC3>", "<0xA9>", "\u2581a", "\u2581b", "<0xZZ>"]
    pieces = Pieces(open_gguf(write_gguf(tmp_path / "spm.gguf", tokens, model="llama", types=types)))
    assert [pieces.piece(index) for index in range(7)] == [
        b"", b"", b"\xc3", b"\xa9", b" a", "\u2581b".encode(), b"<0xZZ>",
    ]  # fmt: skip
    assert pieces.split("é".encode(), 2, 3) == [2, 3]
    assert pieces.split("éé".encode(), 4, 3) == [2, 3, 2, 3]
    for text, count, last in (("é", 3, 3), ("é", 2, 2), ("è", 2, 3), ("é a", 2, 4)):
        assert pieces.split(text.encode(), count, last) is None

    bytelevel = Pieces(open_gguf(write_gguf(tmp_path / "bpe.gguf")))
    llama = "🦙".encode()
    assert bytelevel.split(llama, 3, THIRD) == [FIRST, SECOND, THIRD], "the longest from the left of two ways"
    assert bytelevel.piece(bytelevel.whole) == b"c"


@pytest.mark.parametrize(("tokens", "model"), [(TOKENS, "rwkv"), ([1, 2], "gpt2")])
def test_a_vocabulary_of_another_kind_is_refused(tmp_path: Path, tokens: list[Any], model: str) -> None:
    file = write_gguf(tmp_path / "m.gguf", model=model)
    header = replace(open_gguf(file), metadata={"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.model": model})
    with pytest.raises(InputError):
        Pieces(header)


def test_grammars_are_written_and_checked() -> None:
    """llama.cpp goes on without a grammar of llguidance that is malformed, and says nothing."""
    schema = Grammar(kind="json_schema", text='{"type": "object"}')
    assert llguidance_text(schema) == '%llguidance {}\nstart: %json {"type": "object"}'
    assert llguidance_text(Grammar(kind="regex", text="a/b\n\\/")) == "%llguidance {}\nstart: /a\\/b\\n\\//"
    assert llguidance_text(Grammar(kind="choice", text='["a", "\\"b"]')) == '%llguidance {}\nstart: "a" | "\\"b"'
    assert llguidance_text(Grammar(kind="lark", text='start: "a"')) == '%llguidance {}\nstart: "a"'
    own = '%llguidance {"no_forcing": true}\nstart: "a"'
    assert llguidance_text(Grammar(kind="lark", text=own)) == own
    assert llguidance_text(Grammar(kind="json_object")).startswith("%llguidance")
    assert gbnf_text(Grammar(kind="choice", text='["\\u0001\\"é"]')) == 'root ::= "\\U00000001\\"é"'
    assert gbnf_text(Grammar(kind="json_object")).startswith("root ::= object")


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar(kind="regex", text="["),
        Grammar(kind="regex", text="\ud800"),
        Grammar(kind="lark", text="other: 'a'"),
        Grammar(kind="json_schema", text='{"type": "strange"}'),
        Grammar(kind="json_schema", text='{"type": "array", "uniqueItems": true}'),
        Grammar(kind="json_schema", text="{"),
        Grammar(kind="choice", text="[]"),
        Grammar(kind="choice", text="[1]"),
    ],
)
def test_a_malformed_grammar_is_refused(grammar: Grammar) -> None:
    with pytest.raises(RequestError) as caught:
        llguidance_text(grammar)
    assert caught.value.param == "grammar"
