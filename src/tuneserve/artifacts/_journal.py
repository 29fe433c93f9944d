"""How far a pass has come, noted beside its output so that a later run can go on from there."""

import json
from pathlib import Path

_FILE = ".journal.json"


class Journal:
    """Counts the weights of a pass that are on the disk; what another plan noted does not count."""

    def __init__(self, directory: Path, fingerprint: str) -> None:
        self._path = directory / _FILE
        self._fingerprint = fingerprint

    def read(self) -> int:
        """Return how many weights an earlier run has put on the disk."""
        try:
            noted = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return 0
        matches = isinstance(noted, dict) and noted.get("fingerprint") == self._fingerprint
        return int(noted["done"]) if matches else 0

    def write(self, done: int) -> None:
        """Note that ``done`` weights are on the disk."""
        scratch = self._path.with_suffix(".new")
        scratch.write_text(json.dumps({"fingerprint": self._fingerprint, "done": done}))
        scratch.rename(self._path)

    def remove(self) -> None:
        """Forget it; the output is complete."""
        self._path.unlink()
