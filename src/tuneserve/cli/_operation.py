"""How a server is run, from the options of the verbs that serve."""

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tuneserve.errors import InputError

if TYPE_CHECKING:
    from tuneserve.gateway import Settings, Tls


@dataclass(frozen=True)
class Operation:
    """How the gateway treats requests, and how it leaves; ``log_format`` None is no line per request."""

    settings: "Settings | None" = None
    tls: "Tls | None" = None
    log_format: str | None = None
    drain_seconds: float = 30.0

    def logging(self) -> AbstractContextManager[None]:
        """Log to stderr while the server runs."""
        from tuneserve.gateway import logging_to

        if self.log_format is None:
            return nullcontext()
        return logging_to(sys.stderr, "json" if self.log_format == "json" else "text")


def operation(
    settings: "Settings", certificate: Path | None, key: Path | None, log_format: str, drain_seconds: float
) -> Operation:
    """Check the options, before anything is loaded.

    Raises:
        InputError: one of them cannot be used, or is missing.
    """
    from tuneserve.gateway import Tls

    if log_format not in ("text", "json"):
        raise InputError(f"the log format {log_format!r} does not exist; choose text or json.")
    if (certificate is None) != (key is None):
        raise InputError("a certificate and its key go together; give both --tls-cert and --tls-key.")
    settings.check()
    tls = None if certificate is None or key is None else Tls(certificate, key)
    return Operation(settings, tls, log_format, drain_seconds)
