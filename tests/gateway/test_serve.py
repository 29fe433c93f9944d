"""Protects the life of a server process: its port, its start, and that it leaves without breaking an answer."""

import json
import re
import signal
import socket
import ssl
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
from tuneserve.gateway import Limits, ServedModel, Settings, Tls, add_key, serve
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


async def _never() -> list[ServedModel]:
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


def test_the_open_world_without_keys_is_warned_of(tokenizer_dir: Path, tmp_path: Path) -> None:
    warned = r"whoever reaches 0\.0\.0\.0 port \d+ may use it; give it --api-key-file\.\n"
    with _program(tokenizer_dir, logged=warned, serve={"port": 0, "host": "0.0.0.0"}) as program:
        program.url()
        program.process.terminate()
    add_key(tmp_path / "keys.toml", "alice", Limits())
    keys = str(tmp_path / "keys.toml")
    with _program(tokenizer_dir, serve={"port": 0, "host": "0.0.0.0"}, api_keys=keys) as program:
        program.url()
        program.process.terminate()


def test_a_hangup_has_the_keys_read_again(tokenizer_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    first = add_key(file, "alice", Limits())
    logged = "(the API keys were read again: there are 1\n)+"
    with _program(tokenizer_dir, logged=logged, api_keys=str(file)) as program:
        url = program.url()
        assert httpx.get(f"{url}/v1/models", headers={"x-api-key": first}).status_code == 200
        file.unlink()
        second = add_key(file, "alice", Limits())
        program.process.send_signal(signal.SIGHUP)
        while httpx.get(f"{url}/v1/models", headers={"x-api-key": second}).status_code != 200:
            pass
        assert httpx.get(f"{url}/v1/models", headers={"x-api-key": first}).status_code == 401
        program.process.terminate()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
        "-keyout", str(key), "-out", str(certificate), "-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def test_it_serves_https(tokenizer_dir: Path, certificate: tuple[Path, Path]) -> None:
    with _program(tokenizer_dir, tls=[str(path) for path in certificate]) as program:
        url = program.url()
        assert url.startswith("https://")
        context = ssl.create_default_context(cafile=str(certificate[0]))
        with httpx.stream("POST", url + CHAT, json=chat_body(stream=True), verify=context) as response:
            assert list(response.iter_lines())[-2] == "data: [DONE]"
        with pytest.raises(httpx.TransportError):
            httpx.get(url.replace("https", "http"))
        program.process.terminate()


def test_a_certificate_that_cannot_be_used_is_one_sentence(certificate: tuple[Path, Path]) -> None:
    pem, key = certificate
    locked = key.with_name("locked.pem")
    lock = ["openssl", "ec", "-in", str(key), "-out", str(locked), "-aes256", "-passout", "pass:secret"]
    subprocess.run(lock, check=True, capture_output=True)
    for pair in ((pem, locked), (pem, pem), (key, pem), (pem, key.with_name("missing.pem"))):
        with pytest.raises(InputError, match=r"^the certificate .* cannot be used .*; name two PEM files .*[.]$"):
            Tls(*pair)


def test_bad_keys_are_told_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text("")
    with pytest.raises(InputError, match="has no keys"):
        serve(_never, port=0, on_ready=print, settings=Settings(api_keys=tmp_path / "keys.toml"))
