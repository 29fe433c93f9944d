"""How much main memory this process can still use."""

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Return the bytes of main memory that this process can still use, within its control group's limit."""
    free = [_available_on_host(), *_available_in_group()]
    return max(0, min(free))


def _available_on_host() -> int:
    for line in _MEMINFO.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    raise OSError(f"{_MEMINFO} does not say how much memory is available")


def _available_in_group() -> list[int]:
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        cached = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return []
    # Pages of files that were only read are given back on demand.
    return [] if limit == "max" else [int(limit) - used + int(cached.get("inactive_file", 0))]
