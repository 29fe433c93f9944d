"""Protects: exit codes, one-sentence errors, and that nothing is left half-written."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Make = Callable[..., Path]
TUNESERVE = [sys.executable, "-m", "tuneserve"]


def run(*arguments: str | Path, **options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **options}
    command = [*TUNESERVE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_help_imports_nothing_but_the_command_line() -> None:
    """So that it, and every completion of the shell, takes a fraction of a second."""
    code = "import sys; from tuneserve import cli; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    rooms = {name.split(".")[1] for name in shown if name.startswith("tuneserve.")}
    assert rooms == {"_version", "cli", "errors"}
    foreign = {name.partition(".")[0] for name in shown} - set(sys.stdlib_module_names) - {"__main__", "__mp_main__"}
    # What sitecustomize and installers bring is not ours.
    assert not foreign & {"torch", "numpy", "transformers", "httpx", "pydantic", "fastapi", "msgspec", "tokenizers"}


def test_the_shell_is_offered_completion() -> None:
    shown = run("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert shown.returncode == 0 and "complete" in shown.stdout
    offered = run(_TUNESERVE_COMPLETE="complete_bash", COMP_WORDS="tuneserve ver", COMP_CWORD="1")
    assert offered.stdout.split() == ["verify"]


def test_every_verb_has_help_with_an_example() -> None:
    for verb in (
        "demo",
        "inspect",
        "plan",
        "export",
        "verify",
        "serve",
        "generate",
        "chat",
        "check",
        "deploy",
        "engines",
    ):
        result = run(verb, "--help")
        assert result.returncode == 0
        assert f"tuneserve {verb}" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "nowhere/at/all"],
        ["export", "/", "/tmp/never"],
        ["generate", "nowhere", "hi"],
        ["serve", "demo", "--port", "99999"],
        ["verify", "nowhere", "--against", "nowhere"],
        ["chat", "demo", "--model", "x"],
        ["no-such-verb"],
    ],
)
def test_bad_input_is_exit_code_2_and_one_sentence(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.strip()


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [(">&-", 0, ""), (">/dev/full", 2, "No space left"), ("| true", 141, ""), (">&- 2>&- <&-", 0, "")],
)
def test_a_stdout_that_takes_nothing_is_no_traceback(redirection: str, code: int, said: str) -> None:
    command = f"set -o pipefail; (sleep 0.1; exec {shlex.join([*TUNESERVE, '--version'])}) {redirection}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert said in result.stderr and len(result.stderr.splitlines()) == bool(said)


def test_what_a_terminal_has_no_characters_for_is_written_in_some_way(make_llama: Make) -> None:
    model = make_llama()
    named = model.rename(model.with_name("größe 🙂"))
    shown = run("inspect", named, PYTHONIOENCODING="ascii")
    assert shown.returncode == 0 and r"gr\xf6\xdfe \U0001f642" in shown.stdout
    assert json.loads(run("inspect", named, "--json", PYTHONIOENCODING="ascii").stdout)["name"] == named.name


def test_what_is_no_text_on_stdin_is_one_sentence() -> None:
    command = [*TUNESERVE, "generate", "nowhere", "-"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    result = subprocess.run(command, input=b"\xff\n", capture_output=True, check=False, env=environment)
    assert result.returncode == 2 and result.stdout == b""
    assert b"stdin is not utf-8 text; convert it." in result.stderr and b"Traceback" not in result.stderr


def test_an_adapter_is_weighted_once(make_llama: Make, make_lora: Make, tmp_path: Path) -> None:
    adapter = make_lora(make_llama())
    twice = ["--adapter", f"{adapter}=0.5", "--adapter", f"{adapter}=0.3"]
    result = run("export", adapter, tmp_path / "out", *twice, "--dry-run")
    assert result.returncode == 2 and "given twice" in result.stderr


def test_inspect_says_what_an_adapter_is(make_llama: Make, make_lora: Make) -> None:
    facts = json.loads(run("inspect", make_lora(make_llama()), "--json").stdout)
    assert facts["kind"] == "adapter"
    assert facts["ranks"] == [4]
    assert facts["adapted_modules"] == 14
    assert facts["native_engine"] == "yes"
    assert "not usable" in facts["tokenizer"]


def test_inspect_says_what_runs_through_transformers(make_llama: Make) -> None:
    base = make_llama()
    config = json.loads((base / "config.json").read_text())
    for family, verdict in (("olmo2", "through Transformers (slower): "), ("unheard_of", "no: ")):
        (base / "config.json").write_text(json.dumps({**config, "model_type": family}))
        facts = json.loads(run("inspect", base, "--json").stdout)
        assert facts["native_engine"].startswith(verdict) and repr(family) in facts["native_engine"]


def test_export_then_verify_then_not_twice(make_llama: Make, make_lora: Make, tmp_path: Path) -> None:
    base = make_llama()
    adapter = make_lora(base, scale=0.3)
    out = tmp_path / "out"
    exported = run("export", adapter, out)
    assert exported.returncode == 0, exported.stderr
    assert "same model" in exported.stdout
    again = run("export", adapter, out)
    assert again.returncode == 2
    assert "exists" in again.stderr
    assert run("verify", out, "--against", adapter).returncode == 0
    wrong = run("verify", base, "--against", adapter, "--json")
    assert wrong.returncode == 1
    assert json.loads(wrong.stdout)["passed"] is False


def test_ctrl_c_in_the_middle_of_a_merge_leaves_nothing(make_llama: Make, make_lora: Make, tmp_path: Path) -> None:
    adapter = make_lora(make_llama())
    with subprocess.Popen(
        [*TUNESERVE, "export", str(adapter), str(tmp_path / "out")], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "merging" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "interrupted" in rest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
