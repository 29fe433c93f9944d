"""Protects: Compose files that an independent parser of the specification takes, hardened, of what was named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from tuneserve.errors import InputError

Render = Callable[..., dict[str, str]]
Make = Callable[..., Path]


def services(files: dict[str, str]) -> dict[str, Any]:
    compose_spec.PyCompose.from_yaml(files["compose.yaml"])
    found = yaml.safe_load(files["compose.yaml"])["services"]
    assert isinstance(found, dict)
    return found


def test_the_oracle_refuses_what_compose_does_not_know() -> None:
    with pytest.raises(ValueError, match="read_onli"):
        compose_spec.PyCompose.from_yaml("services: {a: {image: b, read_onli: true}}")


def test_the_container_is_hardened_and_drains(render: Render, make_llama: Make) -> None:
    service = services(render("compose", make_llama(), "cpu-4c-16GB", drain_seconds=90))["serve"]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == "10001:10001"
    assert service["stop_grace_period"] == "105s"
    assert service["healthcheck"] == {"start_period": "900s"}
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert all(mount["read_only"] for mount in service["volumes"] if mount["type"] == "bind")


def test_an_adapter_and_its_base_are_two_mounts(render: Render, make_llama: Make, make_lora: Make) -> None:
    base = make_llama()
    adapter = make_lora(base)
    service = services(render("compose", adapter, "cpu-4c-16GB"))["serve"]
    mounts = {mount["source"]: mount["target"] for mount in service["volumes"]}
    assert mounts[str(adapter)] == "/models/model" and mounts[str(base)] == "/models/base"
    command = service["command"]
    assert command[:2] == ["serve", "/models/model"]
    assert command[command.index("--base") + 1] == "/models/base"


def test_each_replica_has_gpus_and_a_port_of_its_own(render: Render, make_llama: Make) -> None:
    found = services(render("compose", make_llama(), "2xA100-80GB"))
    devices = [service["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for service in found.values()]
    assert devices == [["0"], ["1"]]
    assert [service["ports"] for service in found.values()] == [["127.0.0.1:8000:8000"], ["127.0.0.1:8001:8000"]]


def test_a_hostile_name_reaches_the_container_as_it_is(render: Render, make_llama: Make, tmp_path: Path) -> None:
    source = tmp_path / 'a "b" $HOME ${X} #c: - é'
    make_llama().rename(source)
    service = services(render("compose", source, "cpu-4c-16GB"))["serve"]
    # Compose makes one dollar of two.
    assert service["command"][2].replace("$$", "$") == f"--name={source.name}"
    assert "$" not in service["command"][2].replace("$$", "")
    assert service["volumes"][0]["source"].replace("$$", "$") == str(source)


def test_what_one_machine_cannot_do_is_refused(render: Render, llama_70b: Path, make_llama: Make) -> None:
    with pytest.raises(InputError, match="2 machines and these files are for one; use --target kubernetes"):
        render("compose", llama_70b, "2x2xA100-80GB", concurrency=1)
    with pytest.raises(InputError, match="--volume is not for this target; leave it out"):
        render("compose", make_llama(), "cpu-4c-16GB", volume="models")
