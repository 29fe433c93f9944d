"""Ray Serve's seam for routing, filled with ours."""

from random import sample
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from tuneserve.deploy.ray._routing import ranked


class PrefixRouter(RequestRouter):  # type: ignore[misc] # untyped
    """Sends requests with the same beginning to the same replica, within bounds on its load."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas in the order in which they should be asked."""
        key = _key(pending_request)
        replicas = {replica.replica_id.to_full_id_str(): replica for replica in candidate_replicas}
        loads = {name: self.replica_queue_len_cache.get(replica.replica_id) or 0 for name, replica in replicas.items()}
        first, *others = (replicas[name] for name in ranked(key, loads))
        return [[first], others]


class RandomRouter(RequestRouter):  # type: ignore[misc] # untyped
    """Sends each request anywhere: what others are measured against."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return the replicas, a random one of them first."""
        _key(pending_request)
        first, *others = sample(candidate_replicas, len(candidate_replicas))
        return [[first], others]


def _key(request: PendingRequest | None) -> bytes | None:
    """Return the second argument of :meth:`~tuneserve.deploy.ray._replica.Replica.generate`, if it is called."""
    if request is None:
        return None
    # Else Serve asks again without a pause while all replicas are full.
    request.routing_context.should_backoff = True
    args: list[Any] = list(request.args)
    return args[1] if len(args) == 2 else None
