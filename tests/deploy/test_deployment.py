"""Protects: what cannot be deployed is refused in a sentence with the remedy, and names become DNS labels."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneserve.deploy import Deployment, find_target, write
from tuneserve.errors import HardwareError, InputError, OutputError

Describe = Callable[..., Deployment]
Make = Callable[..., Path]
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@pytest.mark.parametrize("name", ["Llama 3.1", "ü", "9", "-", "a" * 100, "x" * 39 + " y", "A_B.c"])
def test_any_name_becomes_a_label(describe: Describe, make_llama: Make, tmp_path: Path, name: str) -> None:
    made = describe(make_llama().rename(tmp_path / name), "cpu-4c-16GB").name
    assert LABEL.fullmatch(made) and len(made) <= 40 and made[0].isalpha()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "Not a label"}, "call it not-a-label"),
        ({"image": "a b"}, "write it as registry/name:tag"),
        ({"image": "a", "volume": "b", "model_image": "c"}, "give one of --volume and --model-image"),
        ({"volume": "../x"}, "no name of a PersistentVolumeClaim"),
        ({"drain_seconds": 10**6}, "the drain timeout is outside 0 to 3600 seconds"),
        ({"key_file": Path("/nowhere/keys.toml")}, "make one with 'tuneserve keys add NAME --file /nowhere/keys.toml'"),
    ],
)
def test_bad_options_are_refused(describe: Describe, make_llama: Make, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        describe(make_llama(), "cpu-4c-16GB", **options)


def test_each_server_compares_itself_with_the_model_unless_told_not_to(describe: Describe, make_llama: Make) -> None:
    model = make_llama()
    for verify in (True, False):
        deployment = describe(model, "cpu-4c-16GB", verify=verify)
        where = {part.name: "/models/it" for part in deployment.parts}
        assert ("--no-verify" in deployment.serve(where, key_file="keys.toml")) == (not verify)


@pytest.mark.parametrize("text", ["", "= 3", "[alice]\n", "[alice]\nsha256 = 3", "a = 1"])
def test_a_file_without_keys_is_refused(describe: Describe, make_llama: Make, keys: Path, text: str) -> None:
    keys.write_text(text)
    with pytest.raises(InputError, match="make one with 'tuneserve keys add"):
        describe(make_llama(), "cpu-4c-16GB")


def test_a_plan_that_has_to_export_first_says_how(describe: Describe, make_llama: Make, make_lora: Make) -> None:
    adapter = make_lora(make_llama())
    with pytest.raises(InputError, match=r"run 'tuneserve export .* --method merged_16bit' and deploy that"):
        describe(adapter, "A100-80GB")


def test_hardware_that_the_model_does_not_fit_is_refused(describe: Describe, llama_70b: Path) -> None:
    with pytest.raises(HardwareError, match="does not fit on RTX-3060-12GB"):
        describe(llama_70b, "rtx3060")


@pytest.mark.parametrize("objective", ["throughput", "simple"])
def test_a_mac_runs_what_is_not_deployed(describe: Describe, demo_base: Path, objective: str) -> None:
    with pytest.raises(InputError, match=r"takes (llama\.cpp|ollama), and only native and vllm are deployed; choose"):
        describe(demo_base, "mac-m4-64GB", objective=objective)


def test_a_link_that_leads_out_of_the_model_is_refused(describe: Describe, make_llama: Make, tmp_path: Path) -> None:
    source = make_llama()
    (tmp_path / "elsewhere").write_text("{}")
    (source / "generation_config.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="copy the directory with 'cp -rL'"):
        describe(source, "cpu-4c-16GB")


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(InputError, match="choose compose, kubernetes"):
        find_target("nomad")


def test_a_directory_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write({"a/b": "c"}, tmp_path / "out")
    assert (tmp_path / "out" / "a" / "b").read_text() == "c"
    with pytest.raises(OutputError, match="exists already"):
        write({"x": "y"}, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
