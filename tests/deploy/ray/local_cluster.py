"""A program that runs a Serve configuration on a Ray of its own: ``python -m tests.deploy.ray.local_cluster FILE``.

An interrupt ends it, and everything that it started. It prints what ``serve status`` would show, a line of JSON each
second.
"""

import json
import sys
import threading
import time
from pathlib import Path

import ray
from ray import serve
from ray.serve.scripts import cli

CPUS = 8
OBJECT_STORE_BYTES = 80 << 20


def report() -> None:
    while True:
        time.sleep(0.5)
        status = serve.status().applications.get("tuneserve")
        if status is not None:
            engine = status.deployments.get("engine")
            line = {
                "status": status.status,
                "message": status.message,
                "engine": engine and dict(engine.replica_states),
            }
            print(json.dumps(line), flush=True)  # noqa: T201


def main() -> None:
    config = Path(sys.argv[1])
    ray.init(
        address="local", namespace="serve", num_cpus=CPUS, object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False, log_to_driver=False, _temp_dir=str(config.parent / "r"),
    )  # fmt: skip
    threading.Thread(target=report, daemon=True).start()
    cli.main(["run", str(config)])


if __name__ == "__main__":
    main()
