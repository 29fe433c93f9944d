"""What this machine has, or a described one would have."""

from tuneserve.hardware._describe import describe_machine
from tuneserve.hardware._detect import detect_machine, has_nvidia_gpu, nvidia_gpus
from tuneserve.hardware._machine import Gpu, Machine
from tuneserve.hardware._memory import available_memory
from tuneserve.hardware._table import gpu_named, gpus

__all__ = [
    "Gpu",
    "Machine",
    "available_memory",
    "describe_machine",
    "detect_machine",
    "gpu_named",
    "gpus",
    "has_nvidia_gpu",
    "nvidia_gpus",
]
