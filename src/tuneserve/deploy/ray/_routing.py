"""Which replica gets a request: the one that has seen its beginning before, unless it has more than its share to do.

Rendezvous hashing (Thaler and Ravishankar, 1998) gives each beginning an order of all replicas, of which only the
places of one change when it comes or goes; the first that is not loaded beyond a bound is taken (arXiv:1608.01350).
"""

import math
from collections.abc import Mapping, Sequence
from hashlib import blake2b

# Of the cache that is to be hit; see native/_blocks.py.
BLOCK_TOKENS = 16
# No replica gets more than this many times the mean load.
LOAD_BOUND = 1.25


def route_key(prompt_ids: Sequence[int], adapter: str | None, blocks: int) -> bytes | None:
    """Return what requests have in common that should meet on one replica; None where nothing is.

    It is their adapter and the first ``blocks`` blocks of their tokens, of a shorter prompt as many as it fills.
    """
    count = min(len(prompt_ids) // BLOCK_TOKENS, blocks) * BLOCK_TOKENS
    if not count and adapter is None:
        return None
    digest = blake2b((adapter or "").encode() + b"\0", digest_size=16)
    digest.update(b"".join(token.to_bytes(8, "little", signed=True) for token in prompt_ids[:count]))
    return digest.digest()


def ranked(key: bytes | None, loads: Mapping[str, int], bound: float = LOAD_BOUND) -> list[str]:
    """Return the replicas in the order in which they should be asked.

    Args:
        key: of the request; None is sent to the replica with the smallest load.
        loads: running and waiting requests of each replica.
        bound: times the mean load, that of this request included, that a replica may have; at least 1.
    """
    if key is None:
        return sorted(loads, key=lambda name: (loads[name], name))
    most = math.ceil(bound * (sum(loads.values()) + 1) / max(1, len(loads)))
    order = sorted(loads, key=lambda name: blake2b(name.encode(), key=key, digest_size=8).digest())
    return sorted(order, key=lambda name: loads[name] >= most)
