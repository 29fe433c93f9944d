"""What follows the load: the autoscaler on the gateway's own metrics, and how they get to it."""

from typing import Any

from tuneserve.deploy._deployment import Deployment

RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
METRICS_SECRET = "metrics-key"  # noqa: S105 (a name)
# A colon is not allowed in the path of the custom metrics API.
_IN_FLIGHT = "tuneserve_requests_in_flight"
# A new replica takes minutes to load, so it is asked for before the others are full.
_FULL = 0.75


def autoscaler(deployment: Deployment, workload: dict[str, Any]) -> dict[str, Any]:
    """Return what changes the number of replicas, up to what the plan's hardware holds."""
    target = {"type": "AverageValue", "averageValue": str(max(1, int(deployment.plan.max_running * _FULL)))}
    metadata = {"name": deployment.name, "labels": workload["metadata"]["labels"]}
    spec = {
        "scaleTargetRef": {
            "apiVersion": workload["apiVersion"], "kind": workload["kind"], "name": deployment.name,
        },
        "minReplicas": 1,
        "maxReplicas": deployment.plan.taken.replicas,
        "metrics": [{"type": "Pods", "pods": {"metric": {"name": _IN_FLIGHT}, "target": target}}],
        "behavior": {
            "scaleUp": {"stabilizationWindowSeconds": 0},
            "scaleDown": {
                "stabilizationWindowSeconds": 600, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 120}],
            },
        },
    }  # fmt: skip
    return {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": metadata, "spec": spec}


def service_monitor(deployment: Deployment, labels: dict[str, str]) -> dict[str, Any]:
    """Return what has Prometheus' operator ask for the metrics, with an API key of its own."""
    credentials = {"name": f"{deployment.name}-{METRICS_SECRET}", "key": "key"}
    endpoint = {
        "port": "http", "path": "/metrics", "interval": "15s",
        "authorization": {"type": "Bearer", "credentials": credentials},
    }  # fmt: skip
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {"name": deployment.name, "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "endpoints": [endpoint]},
    }


def adapter_rule() -> dict[str, Any]:
    """Return values of the chart prometheus-community/prometheus-adapter that make one metric of two."""
    terms = [f"sum({name}{{<<.LabelMatchers>>}}) by (<<.GroupBy>>)" for name in (RUNNING, WAITING)]
    rule = {
        "seriesQuery": f'{RUNNING}{{namespace!="",pod!=""}}',
        "resources": {"overrides": {name: {"resource": name} for name in ("namespace", "pod")}},
        "name": {"matches": f"^{RUNNING}$", "as": _IN_FLIGHT},
        "metricsQuery": " + ".join(terms),
    }
    return {"rules": {"custom": [rule]}}
