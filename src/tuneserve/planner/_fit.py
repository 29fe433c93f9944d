"""How many sequences fit beside the weights."""

from dataclasses import dataclass

from tuneserve.hardware import Machine
from tuneserve.planner._model import PlannedModel
from tuneserve.planner._speed import figures

_BLOCK = 16
_LARGE_MAC, _LARGE_MAC_SHARE = 36 * 10**9, 0.75


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Bytes on each device (a GPU, or the main memory): its ``memory``, of which an engine uses ``usable``.

    ``weights`` and ``overhead`` lie there; ``cache`` is what one sequence of the wished context takes, and
    ``sequences`` how many have room.
    """

    memory: int
    usable: int
    weights: int
    overhead: int
    cache: int
    sequences: int

    @property
    def missing(self) -> int:
        """Bytes by which the device is too small for one sequence; 0 where it is not."""
        return max(0, self.weights + self.overhead + self.cache - self.usable)


def fit(
    model: PlannedModel, machine: Machine, engine: str, weights: int, context: int, tensor: int = 1, pipeline: int = 1
) -> Fit:
    """Return what is on each device when ``weights`` bytes are divided over ``tensor`` times ``pipeline`` of them."""
    row = next(row for row in figures()["memory"] if (row["engine"], row["device"]) == (_family(engine), machine.kind))
    memory = machine.gpus[0].memory if machine.gpus else machine.memory
    assert memory is not None, "a machine without GPUs has a known memory"
    share = _LARGE_MAC_SHARE if machine.kind == "mac" and memory > _LARGE_MAC else row["share"]
    overhead = int(row["bytes"])
    # The native engine has the whole embedding on each GPU.
    whole = int(weights * model.embedding_share) if engine == "native" and tensor > 1 else 0
    each = whole - (whole - weights) // (tensor * pipeline)
    tokens = -(-context // _BLOCK) * _BLOCK if engine == "vllm" else context
    shape = model.cache
    divided = 1 if shape.latent else min(tensor, shape.kv_heads)
    cache = -(-shape.bytes(tokens) // (divided * pipeline))
    usable = int(memory * share)
    room = int((usable - each - overhead) * row.get("cache_share", 1.0))
    sequences = max(0, room // cache) if cache else (10**6 if room >= 0 else 0)
    return Fit(memory=memory, usable=usable, weights=each, overhead=overhead, cache=cache, sequences=sequences)


def _family(engine: str) -> str:
    return "llama.cpp" if engine == "ollama" else engine
