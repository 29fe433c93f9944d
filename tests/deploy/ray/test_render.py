"""Protects: a Serve configuration that Serve's own schema takes, of what the plan says, and what is refused."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from tuneserve.deploy import Deployment
from tuneserve.deploy.ray import RayOptions, read_options
from tuneserve.deploy.ray._render import plan_options, render
from tuneserve.errors import EngineError, InputError

Describe = Callable[..., Deployment]
Make = Callable[..., Path]


def config(files: dict[str, str]) -> dict[str, Any]:
    """Return the configuration, which Serve has read."""
    found = yaml.safe_load(files["serve.yaml"])
    assert isinstance(found, dict)
    ServeDeploySchema.model_validate(found)
    return found


def told(deployment: Deployment) -> RayOptions:
    """Return what the application is told by the file."""
    (application,) = config(render(deployment))["applications"]
    assert application["import_path"] == "tuneserve.deploy.ray:app"
    return read_options(application["args"])


def test_serve_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="proxy_location"):
        ServeDeploySchema.model_validate({"proxy_location": "Somewhere", "applications": []})


def test_an_adapter_on_one_machine_is_served_to_that_machine(
    describe: Describe, make_llama: Make, make_lora: Make, keys: Path
) -> None:
    base = make_llama()
    adapter = make_lora(base)
    deployment = describe(adapter, "cpu-4c-16GB", drain_seconds=7)
    options = told(deployment)
    assert (options.source, options.base, options.engine) == (str(adapter), str(base), "native")
    assert (options.cpus, options.gpus, options.min_replicas, options.max_replicas) == (4, 0, 1, 1)
    assert (options.drain_seconds, options.api_keys) == (7, str(keys))
    assert options.allowed_hosts == ("127.0.0.1", "localhost", "::1")
    files = render(deployment)
    assert config(files)["http_options"] == {"host": "127.0.0.1", "port": 8000}
    assert config(files)["proxy_location"] == "HeadOnly"
    assert all(f"    {path}\n" in files["README.md"] for path in (adapter, base))


def test_a_model_is_compared_unless_it_is_not_to_be(describe: Describe, make_llama: Make) -> None:
    source = make_llama()
    assert told(describe(source, "cpu-4c-16GB")).verify
    assert not told(describe(source, "cpu-4c-16GB", verify=False)).verify


def test_replicas_over_machines_are_reached_from_outside(describe: Describe, llama_70b: Path) -> None:
    deployment = describe(llama_70b, "2x4xA100-80GB")
    options = told(deployment)
    assert (options.engine, options.tensor_parallel, options.gpus) == ("vllm", 4, 4)
    assert (options.min_replicas, options.max_replicas, options.allowed_hosts) == (1, 2, ())
    files = render(deployment)
    assert config(files)["http_options"]["host"] == "0.0.0.0"
    assert config(files)["proxy_location"] == "EveryNode"
    assert "tuneserve engines install vllm" in files["README.md"]


def test_what_is_left_as_it_is_is_not_written(describe: Describe, make_llama: Make) -> None:
    deployment = describe(make_llama(), "cpu-4c-16GB")
    (application,) = config(render(deployment))["applications"]
    default = RayOptions(source="")
    assert told(deployment) == plan_options(deployment)
    assert not {name for name, value in application["args"].items() if value == getattr(default, name)}


def test_a_hostile_path_stays_one_word(describe: Describe, make_llama: Make, tmp_path: Path) -> None:
    source = make_llama().rename(tmp_path / "a 'b' $(c) {{ d }}: - e")
    deployment = describe(source, "cpu-4c-16GB")
    assert told(deployment).source == str(source)
    assert "'\"'\"'b'\"'\"' $(c) {{ d }}: - e'" in render(deployment)["README.md"]


@pytest.mark.parametrize("options", [{"image": "r.example/t:1"}, {"volume": "models"}, {"nodes": Path("nodes.json")}])
def test_what_is_for_other_targets_is_refused(describe: Describe, make_llama: Make, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"--{next(iter(options))} is not for this target; leave it out"):
        render(describe(make_llama(), "cpu-4c-16GB", **options))


def test_a_replica_over_several_machines_is_refused(describe: Describe, llama_70b: Path) -> None:
    with pytest.raises(InputError, match=r"spreads a replica over 2 machines.* use --target kubernetes"):
        render(describe(llama_70b, "2x2xA100-80GB", concurrency=1))


def test_without_ray_nothing_is_made(describe: Describe, make_llama: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = describe(make_llama(), "cpu-4c-16GB")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match="Ray Serve is not installed here"):
        render(deployment)
