"""Stands in for ``python -m sglang.launch_server``: records how it was started and speaks the documented API.

It continues a prompt by counting up from its last token, over a vocabulary of 256. A field or sampling parameter that
SGLang 0.5.23 does not document ends in a 500, so that the tests see it.
"""

import json
import math
import os
import sys
from argparse import ArgumentParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FIELDS = {
    "rid", "input_ids", "sampling_params", "stream", "return_logprob", "top_logprobs_num", "logprob_start_len",
    "lora_path",
}  # fmt: skip
SAMPLING = {
    "max_new_tokens", "min_new_tokens", "stop_token_ids", "temperature", "top_p", "top_k", "min_p", "frequency_penalty",
    "presence_penalty", "repetition_penalty", "json_schema", "regex", "ebnf", "ignore_eos", "skip_special_tokens",
    "logit_bias", "sampling_seed",
}  # fmt: skip
EOS = 2
directory = Path(os.environ["STAND_IN_DIRECTORY"])


def parse() -> Any:
    parser = ArgumentParser(allow_abbrev=False)
    for name in ("model-path", "tokenizer-path", "served-model-name", "host", "api-key", "dtype", "sampling-defaults"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("port", "tp-size"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("context-length", "max-running-requests"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--lora-paths", nargs="*", default=[])
    for name in ("incremental-streaming-output", "enable-metrics", "enable-deterministic-inference"):
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args(sys.argv[3:])


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path == "/server_info":
            info = {
                "max_req_input_len": options.context_length or 128, "dtype": "bfloat16", "device": "cuda",
                "max_running_requests": options.max_running_requests or 32, "version": "0.5.23",
                "internal_states": [{"memory_usage": {"weight": 0.25, "kvcache": 1.0}}],
            }  # fmt: skip
            self.answer(200, json.dumps(info))
        elif self.path == "/metrics":
            label = '{engine_type="unified",model_name="m"}'
            self.answer(
                200,
                f"# TYPE sglang:num_running_reqs gauge\nsglang:num_running_reqs{label} 3.0\n"
                f"sglang:num_queue_reqs{label} 2.0\nsglang:token_usage{label} 0.25\n",
            )
        else:
            self.answer(200 if self.path == "/health" else 404, "")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with (directory / "requests.jsonl").open("a") as file:
            file.write(json.dumps(body) + "\n")
        unknown = (set(body) - FIELDS) | (set(body["sampling_params"]) - SAMPLING)
        if self.path != "/generate" or unknown or self.headers["Authorization"] != f"Bearer {options.api_key}":
            self.answer(500, json.dumps({"error": {"message": f"unexpected {sorted(unknown)}"}}))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for event in events(body):
                self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            (directory / "left").touch()

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def events(body: Any) -> Any:
    ids, sampling = body["input_ids"], body["sampling_params"]
    if len(ids) >= 100:
        yield {"error": {"message": "The input is too long.", "type": "invalid_request_error", "code": 400}}
        return
    stops = set(sampling.get("stop_token_ids", ())) | {EOS}
    limit = sampling["max_new_tokens"] or 10**9
    count, token = 0, ids[-1]
    while True:
        token, count = (token + 1) % 256, count + 1
        stopped = token in stops and not sampling.get("ignore_eos")
        reason = {"type": "stop", "matched": token} if stopped else None
        if reason is None and count == limit:
            reason = {"type": "length", "length": limit}
        meta: dict[str, Any] = {"id": body["rid"], "finish_reason": reason, "completion_tokens": count}
        meta["cached_tokens"] = len(ids) - 1
        if body.get("return_logprob"):
            meta["output_token_logprobs"] = [place(token)]
            meta["output_top_logprobs"] = [top(token, body["top_logprobs_num"])]
            if body["logprob_start_len"] == 0:
                meta["input_token_logprobs"] = [[None, ids[0], None], *(place(each) for each in ids[1:])]
                meta["input_top_logprobs"] = [None, *(top(each, body["top_logprobs_num"]) for each in ids[1:])]
        yield {"text": "", "output_ids": [token], "meta_info": meta}
        if reason is not None:
            return


def place(token: int) -> list[Any]:
    return [-math.log(2), token, None]


def top(token: int, count: int) -> list[Any] | None:
    return [[-math.log(2) - rank, (token + rank) % 256, None] for rank in range(count)] if count else None


options = parse()
kept = {name: os.environ.get(name) for name in ("SGLANG_RETURN_ORIGINAL_LOGPROB", "HF_HUB_OFFLINE")}
(directory / "started.json").write_text(json.dumps({"arguments": sys.argv[1:], "environment": kept}))
if (directory / "broken").exists():
    sys.exit("CUDA out of memory")
ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()
