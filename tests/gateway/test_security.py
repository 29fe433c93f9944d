"""Protects: what broke comparable servers does nothing here; see docs/security.md, which names these tests."""

import ast
import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import tuneserve
from tests.gateway.conftest import FakeEngine, chat_body, write_tokenizer
from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.engines.native import NativeEngine
from tuneserve.sources import resolve
from tuneserve.text import open_chat_template, open_tokenizer

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ROOT = Path(__file__).parents[2]
PACKAGE = Path(tuneserve.__file__).parent
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def _used(path: Path) -> set[str]:
    """Return the unsafe things that a module names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= UNSAFE & {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= UNSAFE & {(node.module or "").partition(".")[0]}
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            found |= {called} & {"torch.load", "eval", "exec", "os.system", "yaml.load", "np.load", "numpy.load"}
            found |= {
                "trust_remote_code" for word in node.keywords if word.arg == "trust_remote_code" and _is_true(word)
            }
    return found


def _is_true(word: ast.keyword) -> bool:
    return not (isinstance(word.value, ast.Constant) and word.value.value is False)


def test_no_module_can_load_pickles() -> None:
    modules = list(PACKAGE.rglob("*.py"))
    assert len(modules) > 100
    assert {str(path): used for path in modules if (used := _used(path))} == {}


def test_the_search_for_what_is_unsafe_finds_it(tmp_path: Path) -> None:
    for line in ("import pickle", "from pickle import loads", "torch.load(f)", "f(trust_remote_code=flag)", "eval(x)"):
        (tmp_path / "module.py").write_text(line)
        assert _used(tmp_path / "module.py"), line


def _part(part: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}]}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"n": 1_000_000_000}),
        (CHAT, {"n": -1}),
        (COMPLETIONS, {"best_of": 1_000_000_000}),
        (COMPLETIONS, {"prompt_embeds": "UEsDBA=="}),
        (COMPLETIONS, {"n_discard": -100}),
        (COMPLETIONS, {"prompt": ""}),
        (COMPLETIONS, {"prompt": [-1]}),
        (COMPLETIONS, {"prompt": [2**31]}),
        (CHAT, {"max_tokens": -(2**63)}),
        (CHAT, {"chat_template": "{{ cycler.__init__.__globals__.os.popen('id').read() }}"}),
        (CHAT, _part({"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}})),
        (CHAT, _part({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}})),
        (CHAT, _part({"type": "video_url", "video_url": {"url": "data:video/jpeg;base64,/9j/,/9j/,/9j/"}})),
        (CHAT, _part({"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}})),
        (CHAT, {"lora_request": {"path": "../../etc"}}),
    ],
)
async def test_what_others_were_broken_with_is_a_400(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, fields: dict[str, Any]
) -> None:
    body = chat_body() if path == CHAT else {"model": "tuned", "prompt": "a"}
    response = await client.post(path, json={**body, **fields})
    assert response.status_code == 400
    assert set(response.json()["error"]) >= {"message", "type", "param", "code"}
    assert not engine.requests
    assert (await client.post(path, json=body)).status_code == 200


@pytest.mark.anyio
async def test_template_arguments_reach_the_template_alone(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await client.post(CHAT, json=chat_body())
    usual = engine.prompt
    for name in ("tokenize", "return_tensors", "chat_template", "template", "self", "tokenizer"):
        response = await client.post(CHAT, json=chat_body(chat_template_kwargs={name: True}))
        assert response.status_code in (200, 400), name
        assert engine.prompt == usual


def test_code_beside_a_model_does_not_run(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    directory = make_llama(vocab_size=258)
    config = json.loads((directory / "config.json").read_text())
    write_tokenizer(directory)
    ran = tmp_path / "ran"
    for name in ("configuration_evil", "modeling_evil", "tokenization_evil", "custom_generate/generate"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / f"{name}.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    config["auto_map"] = {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    (directory / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((directory / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["tokenization_evil.Evil", None]}
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer))

    prompt = open_tokenizer(directory).encode("a", add_special_tokens=False)

    async def scenario() -> int:
        engine = await NativeEngine.start(resolve(directory), dtype="float32")
        try:
            params = SamplingParams(max_tokens=3, temperature=0)
            request = GenerationRequest(id="x", prompt_ids=prompt, params=params)
            return sum([len(chunk.token_ids) async for chunk in engine.generate(request)])
        finally:
            await engine.close()

    assert open_chat_template(directory) is not None
    assert asyncio.run(scenario()) == 3
    assert not ran.exists()


def test_the_page_names_tests_that_exist() -> None:
    """Every test that docs/security.md relies on is there."""
    text = (ROOT / "docs" / "security.md").read_text()
    named, file = 0, Path()
    for path, test in re.findall(r"(tests/[\w/]+\.py|test_\w+\.py)?(?:::(test_\w+))?", text):
        if path:
            file = ROOT / path if path.startswith("tests/") else ROOT / "tests" / "gateway" / path
            assert file.exists(), path
        if test:
            named += 1
            assert re.search(rf"def {test}\(", file.read_text()), test
    assert named > 20
