"""Protects: the tutorial runs as it is written, from the first command to the last."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"


def commands() -> str:
    """Return the commands of the page, in a shell that stops at the first one that fails."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 8
    # Whatever fails, the server goes with the shell.
    return "set -eu\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + "".join(blocks)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_the_tutorial_runs_as_written(demo_base: Path, tmp_path: Path) -> None:
    # The port aside: another program may have it where this runs.
    script = commands().replace("8000", str(free_port()))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for said in (
        "adapter          LoRA", "the files are as they were written", "same model on", "exit code 1",
        "what broke: merge", '"order":"K20418"', " 0 failed", '"finish_reason":"stop"',
    ):  # fmt: skip
        assert said in done.stdout, said
    for page in ("plan", "parity", "load"):
        assert (tmp_path / f"{page}.html").read_text("utf-8").startswith("<!doctype html>")
