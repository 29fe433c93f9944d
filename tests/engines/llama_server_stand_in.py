#!/usr/bin/env python3
"""A program that stands in for llama-server: it speaks its protocol, with answers that were recorded from a real one.

Besides llama-server's arguments it takes ``--answers FILE``: a JSON list with one answer per POST /completion. Each has
``events`` (a stream, which is cut off where it has ``breaks``) or a ``body`` with a ``status``. What it was started
with goes into a file beside it that ends in .started, what it was asked into one that ends in .asked, JSON by line.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answers: list[dict[str, Any]]
    asked: Path

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200, {"status": "ok"})
        elif self.headers.get("Authorization") != f"Bearer {os.environ['LLAMA_API_KEY']}":
            self.answer(401, {"error": {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}})
        elif self.path == "/props":
            self.answer(200, {"build_info": "b11549-abc", "default_generation_settings": {"n_ctx": 256}})
        elif self.path == "/slots":
            idle = {"id": 0, "n_ctx": 256, "is_processing": False, "n_prompt_tokens": 7}
            self.answer(200, [idle, {"id": 1, "n_ctx": 256, "is_processing": True, "n_prompt_tokens": 16}])
        elif self.path == "/metrics":
            self.write(200, b"# TYPE x gauge\nllamacpp:requests_processing 1\nllamacpp:requests_deferred 3\n")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.asked.open("a") as file:
            file.write(json.dumps(body) + "\n")
        answer = self.answers.pop(0)
        if "events" not in answer:
            self.answer(answer["status"], answer["body"])
            return
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in answer["events"]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text) + bool(answer.get("breaks"))))
        self.end_headers()
        self.wfile.write(text)
        self.close_connection = True

    def answer(self, status: int, body: Any) -> None:
        self.write(status, json.dumps(body).encode())

    def write(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    arguments = sys.argv[1:]
    if arguments == ["--list-devices"]:
        sys.stdout.write("Available devices:\n  CUDA0: NVIDIA H100 (81079 MiB, 80000 MiB free)\n")
        return
    given = {name: value for name, value in pairwise(arguments) if name.startswith("--")}
    answers = Path(given["--answers"])
    Handler.answers = json.loads(answers.read_text())
    Handler.asked = answers.with_suffix(".asked")
    settings = {name: value for name, value in os.environ.items() if name.startswith("LLAMA_")}
    answers.with_suffix(".started").write_text(json.dumps({"arguments": arguments, "settings": settings}))
    ThreadingHTTPServer(("127.0.0.1", int(given["--port"])), Handler).serve_forever()


if __name__ == "__main__":
    main()
