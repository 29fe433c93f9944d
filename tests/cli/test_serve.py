"""Protects: the official clients get the tuned model from a real server process, which leaves in good order."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

ROOT = Path(__file__).parents[2]
MESSAGE = "Order k-20418 arrived broken, I want to send it back. Please call me: 0171 5550100"
TICKET = {"category": "returns", "priority": "normal", "order": "K20418", "reply": "phone"}


@contextmanager
def server(source: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    command = [sys.executable, "-m", "tuneserve", "serve", source, "--port", "0", "--max-running", "8"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        seen = []
        for line in process.stderr:
            seen.append(line)
            if "serving" in line:
                try:
                    yield next(word for word in line.split() if word.startswith("http")), process
                except BaseException:
                    process.kill()  # else a failed test would wait for it for ever
                    raise
                break
        else:
            pytest.fail("".join(seen))
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait() == 0


def ask(url: str, model: str) -> str:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": MESSAGE}], temperature=0, max_tokens=48
        )
    return answer.choices[0].message.content or ""


def test_official_clients_get_the_tuned_model() -> None:
    with server("demo:tickets") as (url, _):
        whole = ask(url, "demo:tickets")
        assert json.loads(whole) == TICKET
        with openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
            chunks = client.chat.completions.create(
                model="demo:tickets", messages=[{"role": "user", "content": MESSAGE}], temperature=0, stream=True
            )
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
        environment = {**os.environ, "TUNESERVE_URL": url, "TUNESERVE_EXPECT": "category"}
        node = subprocess.run(
            ["npm", "run", "--silent", "test:e2e"], cwd=ROOT / "clients" / "js", env=environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert node.returncode == 0, node.stdout
        check = subprocess.run(
            ["node", str(ROOT / "scripts" / "unsloth-inference_tool.js"), url, "--json"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert check.returncode == 0, check.stdout
    with server("demo") as (url, _):
        assert "category" not in ask(url, "demo")


def test_a_running_stream_is_finished_before_the_server_leaves() -> None:
    with server("demo") as (url, process), openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        chunks = client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "Count to one hundred."}],
            temperature=0,
            max_tokens=60,
            stream=True,
        )
        reasons = [next(iter(chunks)).choices[0].finish_reason]
        process.send_signal(signal.SIGTERM)
        reasons += [chunk.choices[0].finish_reason for chunk in chunks]
        assert reasons[-1] in ("length", "stop")


def test_a_taken_port_is_one_sentence() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for command in (["serve", "demo"], ["demo"]):
            result = subprocess.run(
                [sys.executable, "-m", "tuneserve", *command, "--port", str(port)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert result.returncode == 2
            assert f"port {port} on 127.0.0.1 is in use" in result.stderr
