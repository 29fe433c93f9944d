"""Protects: a server is compared by what it tells, in any form that servers have, and refused if it tells nothing."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve import artifacts, parity
from tuneserve.errors import InputError, SourceError

Make = Callable[..., Path]
Json = dict[str, Any]
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


class Server(ThreadingHTTPServer):
    """Serves a model's probabilities in the form of one kind of server."""

    daemon_threads = True

    def __init__(self, directory: Path, kind: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        super().__init__(("127.0.0.1", 0), Handler)
        self.kind = kind
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        has_text = (directory / "tokenizer.json").is_file()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory) if has_text else None
        self.requests = 0

    def top(self, ids: list[int], count: int) -> list[list[tuple[int, float]]]:
        with torch.inference_mode():
            found = self.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1).topk(count)
        return [
            list(zip(tokens, values, strict=True))
            for tokens, values in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        ]

    def completion(self, body: Json) -> tuple[int, Json]:
        ids, count, echo = body["prompt"], body.get("logprobs", 0), body.get("echo", False)
        if self.kind == "gateway":
            return 400, {"error": {"message": "'logprobs' is not supported with this value; leave it out."}}
        if self.kind == "llama-server" and echo:
            return 400, {"error": {"message": "Only no echo is supported"}}
        if count > 5 and self.kind == "vllm":
            return 400, {"error": {"message": "Requested sample logprobs of 20, which is greater than max allowed: 5"}}
        tops = self.top(ids, count)
        if self.kind == "silent":
            logprobs: Any = None
        elif self.kind == "llama-server":
            entries = [{"id": token, "token": "?", "bytes": [63], "logprob": value} for token, value in tops[-1]]
            logprobs = {"content": [{**entries[0], "top_logprobs": entries}]}
        else:
            named = [{f"token_id:{token}": value for token, value in top} for top in tops]
            if self.kind == "sglang":
                named = [{self.tokenizer.decode([token]): value for token, value in top} for top in tops]
            logprobs = {"tokens": [], "token_logprobs": [], "top_logprobs": [None, *named]}
        return 200, {"choices": [{"index": 0, "text": "", "finish_reason": "length", "logprobs": logprobs}]}

    def chat(self, body: Json) -> tuple[int, Json]:
        ids = self.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=True)
        choice = {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "length"}
        usage = {"prompt_tokens": len(ids.input_ids), "completion_tokens": 1, "total_tokens": len(ids.input_ids) + 1}
        return 200, {
            "id": "a",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": "m", "object": "model"}]})

    def do_POST(self) -> None:
        self.server.requests += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(*(self.server.chat(body) if "chat" in self.path else self.server.completion(body)))

    def _send(self, status: int, value: Json) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(directory: Path, kind: str) -> Iterator[Server]:
    with Server(directory, kind) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, write_model: Make) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path, write_adapter: Make) -> Path:
    return write_adapter(base.parent / "adapter", base, scale=0.3)


@pytest.fixture(scope="module")
def merged(adapter: Path) -> Path:
    artifacts.export(adapter, adapter.parent / "merged", verify=False)
    return adapter.parent / "merged"


@pytest.mark.parametrize(("kind", "positions"), [("vllm", 8 * 48), ("llama-server", 8 * 4)])
def test_a_served_model_passes_and_its_base_fails(
    kind: str, positions: int, merged: Path, base: Path, adapter: Path
) -> None:
    with serving(merged, kind) as server:
        report = parity.verify(server.url, adapter)
    assert report.passed, report.failures
    assert report.lower_bound
    assert report.positions == positions
    assert report.modules is None
    full = parity.verify(merged, adapter)
    assert report.max_kl <= full.max_kl + 1e-6
    with serving(base, kind) as server:
        broken = parity.verify(server.url, adapter)
    assert not broken.passed
    assert broken.mean_kl > broken.thresholds.mean_kl
    assert "only the probabilities can be seen" in broken.diagnosis[0]


@pytest.mark.parametrize(("kind", "reason"), [("gateway", "'logprobs' is not supported"), ("silent", "has none")])
def test_a_server_without_logprobs_is_refused(kind: str, reason: str, merged: Path, adapter: Path) -> None:
    with serving(merged, kind) as server, pytest.raises(InputError, match=f"gives no log-probabilities.*{reason}"):
        parity.verify(server.url, adapter)
    assert server.requests <= 4


def test_a_server_is_no_reference(merged: Path) -> None:
    with pytest.raises(SourceError, match="name files as the reference"):
        parity.verify(merged, "http://127.0.0.1:9")


def test_a_model_name_and_key_are_for_servers(merged: Path, adapter: Path) -> None:
    with pytest.raises(InputError, match="for a server"):
        parity.verify(merged, adapter, api_key="k")


def test_the_text_of_a_server_is_checked_by_its_counts(demo_base: Path, tmp_path: Path, write_model: Make) -> None:
    model = write_model(tmp_path / "model", vocab_size=49152)
    for name in TEXT_FILES:
        shutil.copy(demo_base / name, model / name)
    with serving(model, "sglang") as server:
        report = parity.verify(server.url, model)
        assert report.passed, report.failures
        assert [check.name for check in report.text] == ["tokens of conversations", "a greedy answer"]
        server.tokenizer.chat_template = "{{ bos_token }}" + server.tokenizer.chat_template
        doubled = parity.verify(server.url, model)
    assert [check.step for check in doubled.text if not check.passed] == ["template"]
    assert doubled.diagnosis == ("template",)
