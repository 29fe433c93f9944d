"""Results in a file, one line of JSON for each run."""

import os
from pathlib import Path
from typing import IO

import msgspec

from tuneserve.bench._result import RunResult
from tuneserve.errors import InputError

_MOST_BYTES = 64 * 2**20


def write_result(file: IO[bytes], result: RunResult) -> None:
    """Append a result, so that it is there if the next run is interrupted."""
    file.write(msgspec.json.encode(result) + b"\n")
    file.flush()


def read_results(path: Path) -> list[RunResult]:
    """Read what was written.

    Raises:
        InputError: the file is missing, too large, or holds something else.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > _MOST_BYTES:
                raise InputError(f"{path} is larger than {_MOST_BYTES} bytes; name a file that --out wrote.")
            lines = file.read(_MOST_BYTES).splitlines()
        results = [msgspec.json.decode(line, type=RunResult) for line in lines if line.strip()]
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InputError(f"{path} has no results of tuneserve bench ({error}); name a file that --out wrote.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name a file that --out wrote.") from None
    if not results:
        raise InputError(f"{path} is empty; name a file that --out wrote.")
    return results
