"""Machines by their description: ``2xH100-80GB``, ``rtx4090``, ``cpu-16c-64GB``, ``mac-m4-64GB``."""

import difflib
import re
from dataclasses import replace

from tuneserve.errors import HardwareError
from tuneserve.hardware._detect import detect_machine, this_processor
from tuneserve.hardware._machine import Gpu, Machine
from tuneserve.hardware._table import gpu_named, mac_bandwidth, names, plain

MAX_GPUS, MAX_MACHINES = 16, 1024
_MAX_CORES, _MAX_MEMORY_GB = 1024, 100_000
# Two channels of DDR5-4800, the least that current servers and desktops have.
_ASSUMED_BANDWIDTH = 76.8e9
_COUNTED = re.compile(r"(?:(\d+)x)?(?:(\d+)x)?(.+)", re.IGNORECASE | re.ASCII)
_CPU = re.compile(r"cpu-(\d+)c-(\d+)gb(?:-(\d+)gbps)?", re.IGNORECASE | re.ASCII)
_MAC = re.compile(r"mac-(m\d+(?:-?(?:pro|max|ultra))?)(?:-(\d+)gb)?", re.IGNORECASE | re.ASCII)
_OTHERS = {
    "an AMD GPU": r"rocm|amd|radeon|instinct|mi\d{2,3}x?|rx\d{4}\w*",
    "an Intel GPU or accelerator": r"arc|xpu|gaudi\d*|intel",
    "a TPU": r"tpu|v\d+e",
    "an AWS accelerator": r"inferentia|trainium|neuron|inf\d|trn\d",
}


def describe_machine(text: str) -> Machine:
    """Read the description of a machine; ``auto`` is this one, ``cpu`` its processor alone.

    ``2xH100-80GB`` has two GPUs, ``2x8xH100-80GB`` is two machines of eight. A processor is described by its cores,
    its memory and, if known, that memory's bandwidth: ``cpu-16c-64GB`` or ``cpu-16c-64GB-200GBps``. A Mac is described
    by its chip and its memory: ``mac-m4-64GB``, ``mac-m4-max-128GB``.

    Raises:
        HardwareError: there is no such machine, or none that can be planned for.
    """
    text = text.strip()
    if text.lower() == "auto":
        return detect_machine()
    if text.lower() == "cpu":
        return this_processor()
    if match := _CPU.fullmatch(text):
        return _processor(text, match)
    if match := _MAC.fullmatch(text):
        return _mac(text, match)
    counted = _COUNTED.fullmatch(text)
    if counted is None or len(text) > 60:
        raise _unknown(text)
    first, second, name = counted.groups()
    gpu = gpu_named(name)
    if gpu is None:
        raise _unknown(text, name)
    machines, count = (first, second) if second else (1, first or 1)
    return _gpus(gpu, _bounded(text, machines, MAX_MACHINES), _bounded(text, count, MAX_GPUS))


def _gpus(gpu: Gpu, machines: int, count: int) -> Machine:
    several = f"{count}x" if count > 1 or machines > 1 else ""
    name = f"{machines}x{several}{gpu.name}" if machines > 1 else f"{several}{gpu.name}"
    return Machine(name=name, kind="nvidia", gpus=(gpu,) * count, count=machines)


def _processor(text: str, match: re.Match[str]) -> Machine:
    cores = _bounded(text, match[1], _MAX_CORES)
    memory = _bounded(text, match[2], _MAX_MEMORY_GB)
    machine = Machine(name=text.lower(), kind="cpu", cores=cores, memory=memory * 10**9, bandwidth=_ASSUMED_BANDWIDTH)
    if match[3]:
        return replace(machine, bandwidth=_bounded(text, match[3], 10_000) * 1e9)
    note = f"its memory is taken to have {_ASSUMED_BANDWIDTH / 1e9:g} GB/s; say it with {text.lower()}-200GBps"
    return replace(machine, notes=(note,))


def _mac(text: str, match: re.Match[str]) -> Machine:
    bandwidth = mac_bandwidth(match[1])
    if bandwidth is None:
        raise _unknown(text)
    if match[2] is None:
        raise HardwareError(f"how much memory the Mac {text!r} has is not said; write it as {text.lower()}-64GB.")
    memory = _bounded(text, match[2], _MAX_MEMORY_GB) * 10**9
    gpu = Gpu(name=match[1].upper().replace("MAX", "Max").replace("PRO", "Pro").replace("ULTRA", "Ultra"),
              memory=memory, bandwidth=bandwidth, capability=None)  # fmt: skip
    return Machine(name=text.lower(), kind="mac", gpus=(gpu,), memory=memory, bandwidth=bandwidth)


def _bounded(text: str, number: str | int, most: int) -> int:
    # Compared by length first: Python refuses to read numbers of thousands of digits.
    value = int(number) if len(str(number)) <= 9 else most + 1
    if not 1 <= value <= most:
        raise HardwareError(
            f"the hardware {text[:60]!r} has a number outside 1 to {most}; describe a machine that exists."
        )
    return value


def _unknown(text: str, name: str | None = None) -> HardwareError:
    wanted = name or text
    for what, pattern in _OTHERS.items():
        if re.fullmatch(pattern, plain(wanted)[:40]) or re.match(rf"({pattern})($|[-_ ])", wanted.lower()[:40]):
            return HardwareError(
                f"{text[:60]!r} is {what}, which is not planned for: tuneserve runs on NVIDIA GPUs, processors and, "
                "through llama.cpp, Macs; describe one of these, or cpu for this machine's processor."
            )
    known = {plain(each): each for each in names()}
    near = difflib.get_close_matches(plain(wanted)[:40], known, n=3, cutoff=0.5)
    listed = ", ".join(known[each] for each in near) or "2xH100-80GB, rtx4090, cpu, mac-m4-64GB"
    return HardwareError(f"there is no hardware {text[:60]!r}; the nearest names are {listed}.")
