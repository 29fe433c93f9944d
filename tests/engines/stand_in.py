"""A server that stands in for an engine: ``stand_in.py PORT BEHAVIOUR DIRECTORY``.

It writes the ids of its processes into DIRECTORY. GET /health answers once it serves; GET /die ends it with code 7.
POST /count streams the numbers below ``n`` as events and notes in DIRECTORY when the reader leaves.
"""

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

directory = Path(sys.argv[3])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path == "/die":
            sys.stdout.write("\x1b[31mout of luck\x1b[0m\n")
            sys.stdout.flush()
            os._exit(7)
        found = self.path == "/health"
        self.answer(200 if found else 404, json.dumps({"auth": self.headers.get("Authorization")}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/refuse":
            self.answer(body["status"], body["answer"])
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for number in range(body["n"]):
                self.chunk(body["form"] % number)
            self.chunk(body.get("end", ""))
            self.chunk("")
        except OSError:
            (directory / "left").touch()

    def chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def note_process(name: str) -> None:
    (directory / f"{name}.new").write_text(str(os.getpid()))
    (directory / f"{name}.new").rename(directory / f"{name}-{os.getpid()}.pid")


def detach_worker() -> None:
    """Start a worker as daemons are: twice forked, in a session of its own, deaf to all but SIGKILL."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            note_process("worker")
            time.sleep(600)
        os._exit(0)
    os.wait()


def main() -> None:
    port, behaviour = int(sys.argv[1]), sys.argv[2]
    starts = len(list(directory.glob("server-*.pid")))
    note_process("server")
    if behaviour == "break" or (behaviour == "break-later" and starts):
        sys.stdout.write("reading weights\n  \nno such tensor\n")
        sys.exit(3)
    if behaviour == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if behaviour == "workers":
        detach_worker()
    if behaviour == "never":
        time.sleep(600)
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


main()
