"""Compiling the C++ sources once per machine, into the cache directory.

What a build depends on is in its name: the sources, the compiler, its options and the processor's features. So a cache
directory that several kinds of machine share holds a build for each, and none ever loads another's.
"""

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tuneserve.errors import EngineError, SourceError
from tuneserve.sources import cache_directory, locked

_SOURCES = Path(__file__).parent
_OPTIONS = (
    "-std=c++20", "-O3", "-ffp-contract=off", "-fno-strict-aliasing", "-shared", "-fPIC", "-pthread", "-w",
)  # fmt: skip
# Said because CXX is often the driver for C, which compiles C++ and leaves its library out.
_LIBRARIES = ("-lstdc++", "-lm")
_SECONDS = 600
_CPUINFO = Path("/proc/cpuinfo")
_logger = logging.getLogger("tuneserve.kernels")


def build(architecture: str = "native", extra: tuple[str, ...] = ()) -> Path:
    """Return the shared library, compiled first where there is none yet; of several processes one compiles.

    Args:
        architecture: what ``-march`` is given; anything but ``native`` leaves instructions out on purpose.
        extra: further options of the compiler.

    Raises:
        EngineError: there is no C++ compiler (``$CXX``, ``g++``, ``clang++`` or ``c++``), it fails, or there is no
            writing in the cache.
    """
    compiler = _compiler()
    options = (*_OPTIONS, f"-march={architecture}", *extra)
    try:
        home = cache_directory() / "kernels"
        library = home / f"step-{_key(compiler, options)}.so"
        if library.exists():
            return library
        with locked(home / ".lock"):
            if not library.exists():
                _compile(compiler, options, library)
    except (OSError, SourceError) as error:
        raise EngineError(f"the compiled CPU kernels cannot be kept: {error}") from None
    return library


def _compile(compiler: str, options: tuple[str, ...], library: Path) -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".building-") as scratch:
        output = Path(scratch) / library.name
        command = [compiler, *options, str(_SOURCES / "step.cpp"), *_LIBRARIES, "-o", str(output)]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603
        except (OSError, subprocess.SubprocessError) as error:
            raise EngineError(f"{compiler} does not run ({error}); set CXX to a C++20 compiler.") from None
        if result.returncode != 0:
            said = next((line for line in result.stderr.splitlines() if "error" in line), result.stderr.strip())
            raise EngineError(
                f"{compiler} cannot compile the CPU kernels ({said[:300]}); set CXX to a C++20 compiler like g++ 11."
            )
        output.rename(library)
    _logger.info("compiled the CPU kernels with %s in %.1f s: %s", compiler, time.monotonic() - began, library)


def _compiler() -> str:
    named = os.environ.get("CXX")
    for name in (named,) if named else ("g++", "clang++", "c++"):
        if found := shutil.which(name):
            return found
    if named:
        raise EngineError(f"CXX names {named}, which is not a program here; unset it or name a C++20 compiler.")
    raise EngineError("there is no C++ compiler here; install g++ or clang++, or set CXX.")


def _key(compiler: str, options: tuple[str, ...]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=60, check=False).stdout  # noqa: S603
    digest = hashlib.sha256()
    parts = [path.read_bytes() for path in sorted(_SOURCES.iterdir()) if path.suffix in (".cpp", ".h")]
    for part in (
        *parts,
        version,
        *(option.encode() for option in (*options, *_LIBRARIES)),
        platform.machine().encode(),
        _features(),
    ):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:24]


def _features() -> bytes:
    """Return what the processor can do, in the kernel's words, empty where it does not say."""
    try:
        lines = _CPUINFO.read_bytes().splitlines()
    except OSError:
        return b""
    return next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")
