"""Kubernetes: one Deployment, or a LeaderWorkerSet where a model spans several nodes (https://lws.sigs.k8s.io)."""

from typing import Any

from tuneserve.deploy._cluster import check_cluster
from tuneserve.deploy._deployment import PORT, Deployment
from tuneserve.deploy._files import from_template, to_yaml
from tuneserve.deploy._image import VLLM, image_files
from tuneserve.deploy._pod import KEYS, MODELS, PROGRAM, pod, serving_pod, worker_container
from tuneserve.deploy._resources import HUB_SECRET, KEYS_SECRET
from tuneserve.deploy._scaling import adapter_rule, autoscaler, service_monitor
from tuneserve.errors import InputError

LOCAL = False
_RAY_PORT = 6379
_LWS = "leaderworkerset.sigs.k8s.io"
_ACCESS = "tuneserve-access"


def render(deployment: Deployment) -> dict[str, str]:
    """Return the files; see :class:`tuneserve.deploy.Target`."""
    _check(deployment)
    several = deployment.plan.taken.pipeline > 1
    workload = _leader_worker_set(deployment) if several else _deployment(deployment)
    manifests = {
        "manifests/secret.yaml": _secret(deployment),
        f"manifests/{'leaderworkerset' if several else 'deployment'}.yaml": workload,
        "manifests/service.yaml": _service(deployment),
        "manifests/networkpolicy.yaml": _network_policy(deployment),
        "manifests/poddisruptionbudget.yaml": _disruption_budget(deployment),
        "monitoring/horizontalpodautoscaler.yaml": autoscaler(deployment, workload),
        "monitoring/servicemonitor.yaml": service_monitor(deployment, _labels(deployment)),
        "monitoring/prometheus-adapter-values.yaml": adapter_rule(),
    }
    readme = from_template(
        "kubernetes.md.j2", name=deployment.name, image=deployment.image, several=several, port=PORT,
        models=MODELS, parts=[(part.name, part.path, bool(part.hub)) for part in deployment.parts],
        volume=deployment.volume, model_image=deployment.model_image, downloads=not deployment.has_models,
        token_secret=f"{deployment.name}-{HUB_SECRET}", workload=f"{workload['kind'].lower()}/{deployment.name}",
        minutes=deployment.starting_seconds // 60 + 2, access=_ACCESS, replicas=deployment.plan.taken.replicas,
    )  # fmt: skip
    documents = {path: to_yaml(manifest) for path, manifest in manifests.items()}
    return {"README.md": readme, **documents, **image_files(deployment)}


def _check(deployment: Deployment) -> None:
    if deployment.image is None:
        raise InputError(
            "the cluster pulls its image from a registry; say with --image what it is to be called there, e.g. "
            "registry.example/tuneserve:1."
        )
    local = [part for part in deployment.parts if part.hub is None]
    if local and not deployment.has_models:
        raise InputError(
            f"{local[0].root} is on this machine and the cluster cannot see it; put it on a volume and name its claim "
            "with --volume, or into an image and name that with --model-image."
        )
    if deployment.plan.taken.pipeline > 1 and not deployment.has_models:
        raise InputError(
            f"each of {deployment.plan.taken.pipeline} nodes reads the weights from the same path; put the model on a "
            "volume that they all mount and name its claim with --volume, or name an image with --model-image."
        )
    if deployment.nodes is not None:
        check_cluster(deployment, deployment.nodes)


def _labels(deployment: Deployment) -> dict[str, str]:
    return {"app.kubernetes.io/name": "tuneserve", "app.kubernetes.io/instance": deployment.name}


def _named(deployment: Deployment, version: str, kind: str, suffix: str = "") -> dict[str, Any]:
    name = f"{deployment.name}-{suffix}" if suffix else deployment.name
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": _labels(deployment)}}


def _deployment(deployment: Deployment) -> dict[str, Any]:
    labels = _labels(deployment)
    template = serving_pod(deployment, labels)
    template["spec"]["topologySpreadConstraints"] = [
        {
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": labels},
        }
    ]  # fmt: skip
    # A GPU is rarely left over, so that a new pod would wait forever for an old one to go.
    gpus = deployment.plan.machine.kind == "nvidia"
    update = {"maxSurge": 0 if gpus else 1, "maxUnavailable": 1 if gpus else 0}
    spec = {
        "replicas": deployment.plan.taken.replicas,
        "selector": {"matchLabels": labels},
        "progressDeadlineSeconds": deployment.starting_seconds + 120,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": update},
        "template": template,
    }
    return {**_named(deployment, "apps/v1", "Deployment"), "spec": spec}


def _leader_worker_set(deployment: Deployment) -> dict[str, Any]:
    """Return a leader that serves, and workers that lend vLLM their GPUs through Ray."""
    labels, pipeline = _labels(deployment), deployment.plan.taken.pipeline
    ray = f"{VLLM}/bin/ray start --disable-usage-stats"
    leader = serving_pod(deployment, labels)
    serve = leader["spec"]["containers"][0]
    over_ray = [f"--pipeline-parallel-size={pipeline}", "--distributed-executor-backend=ray"]
    serve["command"] = ["sh", "-c", f'{ray} --head --port={_RAY_PORT} && exec "$0" "$@"', PROGRAM]
    serve["args"] += [f"--engine-arg={argument}" for argument in over_ray]
    serve["env"] = [*serve["env"], {"name": "RAY_ADDRESS", "value": "auto"}]
    # Ray gives up on a head that is not there yet, and a container that ends has the whole group made anew.
    there = f"import os, socket; socket.create_connection((os.environ['LWS_LEADER_ADDRESS'], {_RAY_PORT}), 5)"
    waiting = f'until {VLLM}/bin/python -c "{there}" 2>/dev/null; do sleep 2; done'
    joining = f'exec {ray} --address="$LWS_LEADER_ADDRESS:{_RAY_PORT}" --block'
    worker = pod(deployment, labels, worker_container(deployment, f"{waiting}; {joining}"))
    spec = {
        "replicas": deployment.plan.taken.replicas,
        "startupPolicy": "LeaderCreated",
        "rolloutStrategy": {
            "type": "RollingUpdate", "rollingUpdateConfiguration": {"maxSurge": 0, "maxUnavailable": 1},
        },
        "leaderWorkerTemplate": {
            "size": pipeline,
            # vLLM does not outlive the loss of a part of the model.
            "restartPolicy": "RecreateGroupOnPodRestart",
            "leaderTemplate": leader,
            "workerTemplate": worker,
        },
    }  # fmt: skip
    return {**_named(deployment, "leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"), "spec": spec}


def _secret(deployment: Deployment) -> dict[str, Any]:
    data = {"type": "Opaque", "stringData": {KEYS.rpartition("/")[2]: deployment.keys}}
    return {**_named(deployment, "v1", "Secret", KEYS_SECRET), **data}


def _service(deployment: Deployment) -> dict[str, Any]:
    selector = _labels(deployment)
    if deployment.plan.taken.pipeline > 1:
        selector |= {f"{_LWS}/worker-index": "0"}
    ports = [{"name": "http", "port": 80, "targetPort": "http"}]
    return {**_named(deployment, "v1", "Service"), "spec": {"selector": selector, "ports": ports}}


def _network_policy(deployment: Deployment) -> dict[str, Any]:
    """Return who may come in: this namespace and those that carry a label; and what pods may ask for."""
    everyone = [{"podSelector": {}}, {"namespaceSelector": {"matchLabels": {_ACCESS: "true"}}}]
    ingress: list[dict[str, Any]] = [{"from": everyone, "ports": [{"port": PORT, "protocol": "TCP"}]}]
    names = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
    egress: list[dict[str, Any]] = [
        {"to": [names], "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
    ]
    if deployment.plan.taken.pipeline > 1:
        group = [{"podSelector": {"matchLabels": _labels(deployment)}}]
        ingress.append({"from": group})
        egress.append({"to": group})
    if not deployment.has_models:
        # Everywhere but the addresses where clouds hand out credentials.
        outside = [
            {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]}},
            {"ipBlock": {"cidr": "::/0", "except": ["fd00:ec2::254/128"]}},
        ]
        egress.append({"to": outside, "ports": [{"port": 443, "protocol": "TCP"}]})
    spec = {
        "podSelector": {"matchLabels": _labels(deployment)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": ingress,
        "egress": egress,
    }
    return {**_named(deployment, "networking.k8s.io/v1", "NetworkPolicy"), "spec": spec}


def _disruption_budget(deployment: Deployment) -> dict[str, Any]:
    # Not minAvailable: with one replica it would keep its node from ever being drained.
    spec = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": _labels(deployment)},
        # A pod that does not get ready must not keep its node either.
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return {**_named(deployment, "policy/v1", "PodDisruptionBudget"), "spec": spec}
