"""Protects: calibration takes the user's own text or refuses by name, and what the other process does cannot do harm.

A stand-in interpreter takes the place of the one with ``llmcompressor``; test_calibrated_for_real.py has the real one.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from tuneserve.artifacts import calibrated
from tuneserve.artifacts.calibrated import CALIBRATED, Calibrator, open_calibrator, run_calibrated
from tuneserve.checkpoint import open_checkpoint
from tuneserve.errors import EngineError, InputError, OutputError, TextError
from tuneserve.sources import ResolvedSource, resolve

Make = Callable[..., Path]
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
JOB = Path(calibrated.__file__).with_name("_job.py")

# Answers as an interpreter with llmcompressor would: says what it has, and "quantises" by renaming.
STAND_IN = """#!{python}
import json, os, sys, time
from pathlib import Path
if "-c" in sys.argv:
    print(json.dumps({{"llmcompressor": "0.14.0.1", "torch": "2.13.0+cpu"}}))
    raise SystemExit
home = Path(__file__).parent
request = json.loads(Path(sys.argv[-1]).read_bytes())
offline = {{name: value for name, value in os.environ.items() if name in ("HF_HUB_OFFLINE", "DO_NOT_TRACK")}}
(home / "seen.json").write_text(json.dumps({{"arguments": sys.argv[1:], "offline": offline, **request}}))
mode = (home / "mode").read_text()
print("tuneserve: calibrating", flush=True)
print("(1/2): Calibrating:  10%\\r(1/2): Calibrating: 100%\\r(2/2): Propagating: 5%", flush=True)
if mode == "fail":
    sys.exit("RuntimeError: the layers do not fit together.")
if mode == "nothing":
    sys.exit()
if mode == "killed":
    os.kill(os.getpid(), 9)
if mode == "wait":
    print("tuneserve: waiting", flush=True)
    time.sleep(60)
from safetensors.torch import load_file, save_file
out, tensors, count = Path(request["out"]), {{}}, 0
for name, value in load_file(Path(request["model"]) / "model.safetensors").items():
    if "_proj" in name:
        count += 1
        tensors[name + "_packed"], tensors[name + "_scale"] = value.clone(), value[:1].clone()
    else:
        tensors[name] = value
if mode == "lose":
    del tensors["model.norm.weight"]
save_file(tensors, out / "model.safetensors")
(out / "config.json").write_text(json.dumps({{"quantization_config": {{"quant_method": "compressed-tensors"}}}}))
Path(request["facts"]).write_text(json.dumps({{"quantised_modules": count + (mode == "skip"), "scheme": "W4A16"}}))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def python(tmp_path: Path) -> Path:
    script = tmp_path / "stand-in" / "python"
    script.parent.mkdir()
    script.write_text(STAND_IN.format(python=sys.executable))
    script.chmod(0o755)
    (script.parent / "mode").write_text("work")
    return script


@pytest.fixture
def source(make_llama: Make) -> ResolvedSource:
    directory = make_llama("merged")
    vocabulary = {"<unk>": 0, **{chr(code): code for code in range(32, 127)}}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    (directory / "tuneserve.json").write_text("{}")
    return resolve(directory)


def write_text(directory: Path, texts: list[str], name: str = "own.txt") -> Path:
    path = directory / name
    path.write_text("\n\n".join(texts))
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path, [f"sample number {index}" for index in range(20)])


def opened(source: ResolvedSource, text: Path, python: Path, **options: Any) -> Calibrator:
    calibrator = open_calibrator(["gptq"], source, text=text, python=python, **options)
    assert calibrator is not None
    return calibrator


def run(method: str, source: ResolvedSource, out: Path, calibrator: Calibrator, said: list[str]) -> dict[str, Any]:
    return run_calibrated(method, source.model_dir, out, calibrator, max_shard_bytes=5_000_000, report=said.append)


def decoded(calibrator: Calibrator) -> list[str]:
    return ["".join(map(chr, ids)) for ids in calibrator.text.samples]


@pytest.mark.parametrize("method", CALIBRATED)
def test_a_directory_is_made_of_the_jobs_weights_and_the_merged_models_files(
    method: str, source: ResolvedSource, text: Path, python: Path, tmp_path: Path, cache: Path
) -> None:
    said: list[str] = []
    calibrator = opened(source, text, python)
    facts = run(method, source, tmp_path / "out", calibrator, said)
    assert said == ["calibrating", "layers 1/2", "layers 2/2"]
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    config = json.loads((out / "config.json").read_text())
    assert config.pop("quantization_config") == {"quant_method": "compressed-tensors"}
    assert config == json.loads((source.model_dir / "config.json").read_text())
    assert "model.layers.0.mlp.up_proj.weight_packed" in open_checkpoint(out).tensors
    assert facts == {
        "quantised_modules": 14,
        "scheme": "W4A16",
        "versions": {"llmcompressor": "0.14.0.1", "torch": "2.13.0+cpu"},
        "calibration": {
            "file": "own.txt", "sha256": calibrator.text.sha256, "samples": 20, "tokens": 310, "sequence_length": 128,
        },
    }  # fmt: skip

    seen = json.loads((python.parent / "seen.json").read_text())
    assert seen["arguments"][:2] == ["-I", str(JOB)]
    assert seen["offline"] == {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    assert seen["method"] == method
    assert seen["max_shard_bytes"] == 5_000_000
    assert [list(ids) for ids in calibrator.text.samples] == seen["samples"]
    assert list((cache / "logs").iterdir()) == [], "a log is kept only of what failed"


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("fail", "RuntimeError: the layers do not fit together"),
        ("killed", "it was ended by signal 9"),
        ("nothing", r"\(2/2\): Propagating"),
        ("lose", r"other weights than the merged one has \(model.norm\)"),
        ("skip", "the number of quantised layers"),
    ],
)
def test_a_job_that_fails_leaves_nothing_but_its_log(
    mode: str, reason: str, source: ResolvedSource, text: Path, python: Path, tmp_path: Path, cache: Path
) -> None:
    (python.parent / "mode").write_text(mode)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(EngineError, match=reason) as caught:
        run("gptq", source, tmp_path / "out", opened(source, text, python), [])
    assert set(tmp_path.iterdir()) == {*before, cache}
    if mode in ("fail", "killed", "nothing"):
        (log,) = (cache / "logs").iterdir()
        assert str(log) in str(caught.value)
        assert "(1/2): Calibrating: 100%" in log.read_text()


def test_an_existing_output_is_refused_before_anything_runs(
    source: ResolvedSource, text: Path, python: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        run("gptq", source, tmp_path / "out", opened(source, text, python), [])
    assert not (python.parent / "seen.json").exists()


def test_an_interrupted_run_ends_the_job_and_leaves_nothing(
    source: ResolvedSource, text: Path, python: Path, tmp_path: Path
) -> None:
    (python.parent / "mode").write_text("wait")

    def interrupt(line: str) -> None:
        if line == "waiting":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_calibrated(
            "gptq",
            source.model_dir,
            tmp_path / "out",
            opened(source, text, python),
            max_shard_bytes=1,
            report=interrupt,
        )
    assert not list(tmp_path.glob("*out*"))
    assert not list(tmp_path.glob(".*partial*"))
    assert _ends(lambda: not _running(str(python)))


def test_the_job_ends_when_whoever_started_it_is_killed(tmp_path: Path) -> None:
    # Reading a request from a pipe that nobody writes to keeps the real job where it is.
    request = tmp_path / "request"
    os.mkfifo(request)
    code = (
        "import sys\nfrom tuneserve.engines.child import run_child\n"
        "run_child([sys.executable, '-I', *sys.argv[1:]], lambda _: None)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, JOB, request])
    try:
        assert _ends(lambda: len(_running(str(request))) == 2)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert _ends(lambda: not _running(str(request)))


def _running(argument: str) -> list[Path]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if argument in (process / "cmdline").read_text().split("\0"):
                found.append(process)
        except OSError:
            continue
    return found


def _ends(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_too_little_memory_is_refused(
    source: ResolvedSource, text: Path, python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneserve.artifacts.calibrated._run.available_memory", lambda: 1000)
    with pytest.raises(InputError, match="whole model in memory"):
        run("gptq", source, tmp_path / "out", opened(source, text, python), [])


def test_a_method_that_calibrates_needs_text_and_others_take_none(
    source: ResolvedSource, text: Path, python: Path
) -> None:
    assert open_calibrator(["merged_16bit", "fp8"], source, text=None) is None
    with pytest.raises(InputError, match=r"awq needs text of yours .* --calibrate-with"):
        open_calibrator(["merged_16bit", "awq"], source, text=None)
    with pytest.raises(InputError, match="--calibrate-with is of no use to fp8"):
        open_calibrator(["fp8"], source, text=text)
    with pytest.raises(InputError, match="--engine-python is of no use to fp8"):
        open_calibrator(["fp8"], source, text=None, python=python)
    with pytest.raises(EngineError, match="tuneserve engines install llmcompressor"):
        open_calibrator(["awq"], source, text=text)
    config = source.model_dir / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "vision_config": {}}))
    with pytest.raises(InputError, match="has a vision_config"):
        open_calibrator(["awq"], source, text=text, python=python)


def test_lines_of_jsonl_are_texts_or_conversations_in_the_models_own_template(
    source: ResolvedSource, python: Path, tmp_path: Path
) -> None:
    conversation = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}
    lines = [json.dumps({"text": "plain"}), "", json.dumps(conversation)] * 10
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(lines))
    assert decoded(opened(source, path, python)) == ["plain", "[user]hi[assistant]yes"] * 10


def test_samples_are_spread_over_the_file_and_cut(source: ResolvedSource, python: Path, tmp_path: Path) -> None:
    path = write_text(tmp_path, [f"{index:03} " + "x" * 300 for index in range(64)])
    chosen = opened(source, path, python, samples=16, sequence_length=10)
    assert decoded(chosen) == [f"{index:03} xxxxxx" for index in range(0, 64, 4)]
    limited = opened(source, path, python)
    assert {len(ids) for ids in limited.text.samples} == {128}, "the model has no more positions"
    windows = tmp_path / "windows.txt"
    windows.write_bytes("\ufeff".encode() + b"\r\n \r\n".join([b"one\r\ntwo"] * 16))
    assert decoded(opened(source, windows, python)) == ["one\0two"] * 16


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("own.csv", b"a,b", "neither .txt nor .jsonl"),
        ("own.txt", b"a\n\nb", "has 2 samples, too few"),
        ("own.txt", b"", "has 0 samples, too few"),
        ("own.txt", b"\xff\xfe" * 100, "not text in UTF-8"),
        ("own.txt", b"text\0" * 100, "not text in UTF-8"),
        ("own.txt", b"\n\n".join([b"long enough"] * 16 + [b"x"]), "sample 17 of .* has no two tokens"),
        ("own.jsonl", b"{}\n" * 20, "sample 1 of .* JSON object with"),
        ("own.jsonl", b'{"text": "fine"}\n' * 20 + b"[" * 100_000, "sample 21 of .* JSON object with"),
        ("own.jsonl", b'{"text": "\\ud800"}\n' * 20, "sample 1 of .* lone surrogates"),
        ("own.jsonl", b'{"messages": []}\n' * 20, "sample 1 of .* no messages"),
        ("own.jsonl", b'{"messages": ["hi"]}\n' * 20, "sample 1 of .* that are objects"),
    ],
)
def test_a_useless_text_is_refused(
    name: str, content: bytes, problem: str, source: ResolvedSource, python: Path, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=problem):
        opened(source, path, python)


def test_a_text_that_is_no_file_or_huge_is_refused(
    source: ResolvedSource, python: Path, tmp_path: Path, text: Path
) -> None:
    for path in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(InputError, match=r"no file|neither"):
            opened(source, path, python)
    device = tmp_path / "device.txt"
    device.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="no file"):
        opened(source, device, python)
    with text.open("r+b") as file:
        file.truncate(200_000_001)
    with pytest.raises(InputError, match="larger than"):
        opened(source, text, python)
    with pytest.raises(InputError, match="too few to calibrate on"):
        opened(source, text, python, samples=15)


def test_a_source_without_tokenizer_or_template_is_refused(
    source: ResolvedSource, python: Path, tmp_path: Path, text: Path
) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n' * 20)
    (source.model_dir / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="no chat template"):
        opened(source, path, python)
    (source.model_dir / "tokenizer.json").unlink()
    with pytest.raises(TextError, match=r"no tokenizer\.json"):
        opened(source, text, python)
