"""Protects the life of a server process: its port, its start, and that it leaves without breaking an answer."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import chat_body
from tuneserve.errors import InputError
from tuneserve.gateway import ServedModel, serve
from tuneserve.gateway._listen import host_names, listen

ROOT = Path(__file__).parents[2]
CHAT = "/v1/chat/completions"
WAIT = 30


class Program:
    """The fake server as a process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def url(self) -> str:
        assert self.line() == "building"
        ready, _, url = self.line().partition(" ")
        assert ready == "ready"
        return url

    def release(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def leaves(self) -> int:
        return self.process.wait(WAIT)


@contextmanager
def _program(directory: Path, *, logged: str = "", **options: Any) -> Iterator[Program]:
    options["serve"] = {"port": 0, **options.get("serve", {})}
    command = [sys.executable, "-W", "error", "-m", "tests.gateway.fake_server", str(directory), json.dumps(options)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield Program(process)
            assert process.stderr is not None
            process.wait(WAIT)
            assert re.fullmatch(logged, process.stderr.read())
        finally:
            process.kill()


async def _never() -> ServedModel:
    raise AssertionError("nothing may be loaded when the port cannot be opened")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_on_a_signal(tokenizer_dir: Path, signum: int) -> None:
    with _program(tokenizer_dir) as program:
        url = program.url()
        assert httpx.post(url + CHAT, json=chat_body()).status_code == 200
        program.process.send_signal(signum)
        assert program.line() == "closed"
        assert program.leaves() == 0


def test_running_requests_finish_and_new_ones_are_refused(tokenizer_dir: Path) -> None:
    with _program(tokenizer_dir, engine={"hold_after": 3}) as program, httpx.Client(timeout=WAIT) as client:
        url = program.url()
        with client.stream("POST", url + CHAT, json=chat_body(stream=True)) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            program.process.send_signal(signal.SIGTERM)
            while client.get(f"{url}/ready").status_code == 200:
                pass
            refused = client.post(url + CHAT, json=chat_body())
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            assert client.get(f"{url}/health").status_code == 200
            program.release()
            rest = list(lines)
        assert rest[-2] == "data: [DONE]"
        assert not any("error" in line for line in rest)
        assert program.line() == "closed"
        assert program.leaves() == 0


@pytest.mark.parametrize("hurry", ["timeout", "second signal"])
def test_what_does_not_finish_is_told(tokenizer_dir: Path, hurry: str) -> None:
    drain_seconds = 0.2 if hurry == "timeout" else 1000
    options = {"engine": {"hold_after": 3}, "serve": {"drain_seconds": drain_seconds}}
    logged = "a sequence failed: the fake engine broke.*\n"
    with _program(tokenizer_dir, logged=logged, **options) as program, httpx.Client(timeout=WAIT) as client:
        url = program.url()
        with client.stream("POST", url + CHAT, json=chat_body(stream=True)) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            program.process.send_signal(signal.SIGINT)
            if hurry == "second signal":
                while client.get(f"{url}/ready").status_code == 200:
                    pass
                program.process.send_signal(signal.SIGINT)
            rest = [line for line in lines if line]
        assert "error" in json.loads(rest[-1].removeprefix("data: "))
        assert program.line() == "closed"
        assert program.leaves() == 0


def test_it_answers_while_it_loads_and_stops_loading_when_told(tokenizer_dir: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    with _program(tokenizer_dir, build="hang", serve={"port": port}) as program:
        assert program.line() == "building"
        assert httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 503
        assert httpx.get(f"http://127.0.0.1:{port}/health").json() == {"status": "starting"}
        program.process.send_signal(signal.SIGTERM)
        assert program.leaves() == 0


def test_a_model_that_does_not_load_is_the_callers_error(tokenizer_dir: Path) -> None:
    with _program(tokenizer_dir, build="fail") as program:
        assert program.line() == "building"
        assert program.line() == "error the model is broken; choose another."
        assert program.leaves() == 2


def test_a_rebound_name_is_refused_on_loopback(tokenizer_dir: Path) -> None:
    with _program(tokenizer_dir, serve={"port": 0, "allowed_hosts": ["chat.example"]}) as program:
        url = program.url()
        assert httpx.get(url, headers={"Host": "chat.example"}).status_code == 200
        assert httpx.get(url, headers={"Host": "evil.example"}).status_code == 403
        program.process.terminate()


def test_a_taken_port_is_one_sentence() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"^port {port} on 127.0.0.1 is in use; .*another port.*[.]$"):
            serve(_never, port=port, on_ready=print)


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 65536), ("127.0.0.1", -1), ("no.such.host.invalid", 0), ("192.0.2.1", 0), ("", 0)]
)
def test_an_unusable_address_is_one_sentence(host: str, port: int) -> None:
    with pytest.raises(InputError, match=r"^.*; .*[.]$"):
        serve(_never, host=host, port=port, on_ready=print)


def test_a_port_is_claimed_before_anything_is_served() -> None:
    with closing(listen("127.0.0.1", 0)) as first, pytest.raises(InputError, match="is in use"):
        listen("127.0.0.1", first.getsockname()[1])


def test_localhost_is_where_every_program_looks_for_it() -> None:
    with closing(listen("localhost", 0)) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_host_names_are_only_checked_on_loopback() -> None:
    assert host_names("0.0.0.0", "0.0.0.0", ()) is None
    names = host_names("127.0.0.1", "My-Laptop", ("Chat.Example",))
    assert names is not None
    assert {"localhost", "127.0.0.1", "::1", "my-laptop", "chat.example"} <= names
