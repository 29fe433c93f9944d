"""How a kernel is launched so that it overlaps with the one before it."""

import functools
from typing import Any

import torch
import triton
from triton.runtime import driver
from triton.runtime.interpreter import InterpretedFunction


def dependent(kernel: Any) -> dict[str, Any]:
    """Return the launch options of a kernel that waits for its predecessor by itself (programmatic dependent launch).

    Such a kernel reads its weights while the kernel before it still runs. It needs compute capability 9.0; elsewhere
    the kernel is launched, and compiled, without.
    """
    overlap = not isinstance(kernel, InterpretedFunction) and torch.cuda.get_device_capability()[0] >= 9
    return {"PDL": overlap, "launch_pdl": True} if overlap else {"PDL": False}


def stages_within(stages: int, nbytes: int, device: torch.device) -> int:
    """Return how many of ``stages`` of so many bytes fit in what shared memory a program can have on a device."""
    if device.type != "cuda":
        return stages
    index = torch.cuda.current_device() if device.index is None else device.index
    return max(1, min(stages, _shared_memory(index) // nbytes))


@functools.cache
def _shared_memory(device: int) -> int:
    return int(driver.active.utils.get_device_properties(device)["max_shared_mem"])


def power_of_two(value: int) -> int:
    """Return the least power of two that is not below ``value``."""
    return int(triton.next_power_of_2(value))
