"""Ray Serve's seam for routing, filled with ours."""

import random
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from tuneserve.deploy.ray._routing import ranked


class PrefixRouter(RequestRouter):
    """Sends requests with the same beginning to the same replica, within bounds on its load."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas in the order in which they should be asked."""
        key = None if pending_request is None else _key(pending_request)
        replicas = {replica.replica_id.to_full_id_str(): replica for replica in candidate_replicas}
        loads = {
            name: self.replica_queue_len_cache.get(replica.replica_id) or 0 for name, replica in replicas.items()
        }
        return [[replicas[name]] for name in ranked(key, loads)]


class RandomRouter(RequestRouter):
    """Sends each request anywhere: what others are measured against."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,  # noqa: ARG002
    ) -> list[list[RunningReplica]]:
        """Return the replicas in a random order."""
        return [[replica] for replica in random.sample(candidate_replicas, len(candidate_replicas))]


def _key(request: PendingRequest) -> bytes | None:
    """Return the second argument of :meth:`~tuneserve.deploy.ray._replica.Replica.generate`."""
    args: list[Any] = list(request.args)
    return args[1] if len(args) == 2 else None
