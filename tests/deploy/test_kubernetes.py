"""Protects: manifests that the published schemas take, of pods that drain, are probed, and see only what they need."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tuneserve.deploy import _scaling
from tuneserve.engines.contract import EngineStats
from tuneserve.errors import InputError
from tuneserve.gateway._metrics import Metrics

Render = Callable[..., dict[str, str]]
Make = Callable[..., Path]
# The schemas have no kinds that clusters get by extensions; their pods are checked as pods.
EXTENSIONS = ("LeaderWorkerSet", "ServiceMonitor")
VERSIONS = ("1.30", "1.37")
ONE_NODE: dict[str, Any] = {"image": "r.example/tuneserve:1", "volume": "models"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def manifests(files: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return the manifests by kind, each checked."""
    found = {}
    for path, text in files.items():
        if path.startswith(("manifests/", "monitoring/")) and "values" not in path:
            manifest = yaml.safe_load(text)
            found[manifest["kind"]] = manifest
            if manifest["kind"] not in EXTENSIONS:
                validate(manifest)
    return found


def validate(manifest: dict[str, Any]) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_refuse_what_kubernetes_does_not_know() -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"portz": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(service)


@pytest.mark.parametrize(("hardware", "tensor", "replicas"), [("2xA100-80GB", None, 2), ("cpu-16c-64GB", None, 1)])
def test_one_deployment_serves(
    render: Render, make_llama: Make, hardware: str, tensor: int | None, replicas: int
) -> None:
    found = manifests(render("kubernetes", make_llama(), hardware, **ONE_NODE))
    assert set(found) == {
        "Secret", "Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget", "HorizontalPodAutoscaler",
        "ServiceMonitor",
    }  # fmt: skip
    assert found["Deployment"]["spec"]["replicas"] == replicas
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()


def test_several_gpus_are_one_pod_with_shared_memory(render: Render, llama_70b: Path) -> None:
    found = manifests(render("kubernetes", llama_70b, "4xA100-80GB", **ONE_NODE))
    spec = found["Deployment"]["spec"]["template"]["spec"]
    serve = spec["containers"][0]
    assert serve["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    assert serve["args"][serve["args"].index("--tensor-parallel") + 1] == "4"
    assert {"name": "shm", "mountPath": "/dev/shm"} in serve["volumeMounts"]
    assert serve["resources"]["requests"]["memory"] == "48Gi" and serve["resources"]["requests"]["cpu"] == "7"


def test_a_processor_is_asked_for_what_a_node_can_give(render: Render, make_llama: Make) -> None:
    found = manifests(render("kubernetes", make_llama(), "cpu-16c-64GB", **ONE_NODE))
    serve = found["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    requests, limits = serve["resources"]["requests"], serve["resources"]["limits"]
    # The kubelet and the system keep some of 16 cores, so a pod that asks for all of them waits for ever.
    assert int(requests["cpu"].removesuffix("m")) < 16000
    assert requests["memory"] == limits["memory"] and "cpu" not in limits


def test_several_nodes_are_a_leader_and_workers_over_ray(render: Render, llama_70b: Path) -> None:
    found = manifests(render("kubernetes", llama_70b, "2x2xA100-80GB", concurrency=1, **ONE_NODE))
    workload = found["LeaderWorkerSet"]
    assert workload["apiVersion"] == "leaderworkerset.x-k8s.io/v1"
    group = workload["spec"]["leaderWorkerTemplate"]
    assert group["size"] == 2
    for template in (group["leaderTemplate"], group["workerTemplate"]):
        labels = template["metadata"]["labels"]
        spec = {"selector": {"matchLabels": labels}, "template": template}
        validate({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}, "spec": spec})
    leader = group["leaderTemplate"]["spec"]["containers"][0]
    worker = group["workerTemplate"]["spec"]["containers"][0]
    for container in (leader, worker):
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    # A worker answers nobody, so it sees no keys.
    assert not [each for each in group["workerTemplate"]["spec"]["volumes"] if each["name"] == "keys"]
    assert "--engine-arg=--pipeline-parallel-size=2" in leader["args"]
    assert leader["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert "$LWS_LEADER_ADDRESS:6379" in worker["command"][2]


def test_a_worker_joins_once_its_leader_listens(render: Render, llama_70b: Path, tmp_path: Path) -> None:
    """With this machine's Python in place of the image's, and a script that tells its arguments in place of Ray."""
    group = manifests(render("kubernetes", llama_70b, "2x2xA100-80GB", concurrency=1, **ONE_NODE))["LeaderWorkerSet"]
    command = group["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]["containers"][0]["command"]
    (tmp_path / "python").symlink_to(sys.executable)
    (tmp_path / "ray").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "ray").chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as leader:
        script = command[2].replace("/opt/vllm/bin", str(tmp_path)).replace("6379", str(leader.getsockname()[1]))
        environment = {**os.environ, "LWS_LEADER_ADDRESS": "127.0.0.1"}
        done = subprocess.run([*command[:2], script], capture_output=True, text=True, env=environment, timeout=30)
    assert done.stdout.startswith("start --disable-usage-stats --address=127.0.0.1:")
    assert done.returncode == 0


def test_the_service_and_the_autoscaler_know_the_leader(render: Render, llama_70b: Path) -> None:
    found = manifests(render("kubernetes", llama_70b, "2x2xA100-80GB", concurrency=1, **ONE_NODE))
    workload = found["LeaderWorkerSet"]
    assert found["Service"]["spec"]["selector"]["leaderworkerset.sigs.k8s.io/worker-index"] == "0"
    target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["apiVersion"], target["kind"]) == (workload["apiVersion"], workload["kind"])


def test_the_pod_is_restricted_probed_and_drained(render: Render, make_llama: Make) -> None:
    spec = manifests(render("kubernetes", make_llama(), "A100-80GB", drain_seconds=120, **ONE_NODE))["Deployment"][
        "spec"
    ]["template"]["spec"]
    serve = spec["containers"][0]
    assert spec["securityContext"]["runAsNonRoot"] and not spec["automountServiceAccountToken"]
    assert serve["securityContext"] == {
        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True,
    }  # fmt: skip
    assert serve["livenessProbe"]["httpGet"]["path"] == "/health"
    assert serve["readinessProbe"]["httpGet"]["path"] == serve["startupProbe"]["httpGet"]["path"] == "/ready"
    drain = int(serve["args"][serve["args"].index("--drain-timeout") + 1])
    before = int(serve["lifecycle"]["preStop"]["exec"]["command"][1])
    assert drain == 120 and spec["terminationGracePeriodSeconds"] > before + drain


def test_the_autoscaler_reads_what_the_gateway_exports(render: Render, make_llama: Make) -> None:
    files = render("kubernetes", make_llama(), "2xA100-80GB", concurrency=32, **ONE_NODE)
    load = EngineStats(running=1, waiting=2, cache_usage=0.5)
    exported = Metrics().render({"m": load}, {"m": True}).decode()
    rule = yaml.safe_load(files["monitoring/prometheus-adapter-values.yaml"])["rules"]["custom"][0]
    for name in (_scaling.RUNNING, _scaling.WAITING):
        assert f"\n{name}{{" in exported and name in rule["metricsQuery"]
    metric = manifests(files)["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]
    assert metric["metric"]["name"] == rule["name"]["as"]
    assert metric["target"]["averageValue"] == "12"  # three quarters of the 16 that a replica runs together


def test_a_model_of_the_hub_is_downloaded_at_its_commit(
    render: Render, make_llama: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    make_llama().rename(snapshot)
    found = manifests(render("kubernetes", snapshot, "A100-80GB", image="r.example/t:1"))
    pod = found["Deployment"]["spec"]["template"]["spec"]
    serve = pod["containers"][0]
    assert serve["args"][1] == f"org/name@{COMMIT}"
    # The token comes as a file: what is in the environment, every child and every crash report has.
    assert serve["env"] == [{"name": "HF_TOKEN_PATH", "value": "/etc/huggingface/token"}]
    token = {"secretName": f"{found['Deployment']['metadata']['name']}-hub-token", "optional": True}
    assert [each["secret"].items() >= token.items() for each in pod["volumes"] if each["name"] == "hub"] == [True]
    ports = [port["port"] for rule in found["NetworkPolicy"]["spec"]["egress"] for port in rule["ports"]]
    assert 443 in ports
    mounted = manifests(render("kubernetes", snapshot, "A100-80GB", **ONE_NODE))
    assert mounted["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"][1] == "/models/model"
    ports = [port["port"] for rule in mounted["NetworkPolicy"]["spec"]["egress"] for port in rule["ports"]]
    assert 443 not in ports


def test_the_hub_s_client_takes_the_token_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_secret\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    for path, found in ((tmp_path / "token", "hf_secret"), (tmp_path / "absent", "None")):
        code = "from huggingface_hub import get_token; print(get_token())"
        command, environment = [sys.executable, "-c", code], {**environment, "HF_TOKEN_PATH": str(path)}
        assert subprocess.run(command, capture_output=True, text=True, env=environment).stdout.strip() == found


def test_an_image_with_the_model_is_copied_before_the_start(render: Render, make_llama: Make) -> None:
    options = {"image": "r.example/t:1", "model_image": "r.example/model:1"}
    spec = manifests(render("kubernetes", make_llama(), "A100-80GB", **options))["Deployment"]["spec"]["template"][
        "spec"
    ]
    first = spec["initContainers"][0]
    assert first["securityContext"] == spec["containers"][0]["securityContext"]
    assert first["image"] == "r.example/model:1" and first["command"][-1] == "/target/"


def test_hostile_text_stays_text(render: Render, make_llama: Make, tmp_path: Path, keys: Path) -> None:
    source = tmp_path / "$(PATH): {{ x }} #\N{SNOWMAN} - *a &b"
    make_llama().rename(source)
    files = render("kubernetes", source, "A100-80GB", **ONE_NODE)
    found = manifests(files)
    # Kubernetes makes one dollar of two before a parenthesis.
    assert (
        f"--name={source.name}".replace("$(", "$$(")
        in found["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"]
    )
    assert found["Secret"]["stringData"]["keys.toml"] == keys.read_text()
    assert found["Deployment"]["metadata"]["name"] == "path-x-a-b"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "say with --image"),
        ({"image": "r.example/t:1"}, "the cluster cannot see it; put it on a volume and name its claim with --volume"),
    ],
)
def test_what_the_cluster_cannot_see_is_refused(
    render: Render, make_llama: Make, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        render("kubernetes", make_llama(), "A100-80GB", **options)
