"""How the gateway treats requests."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tuneserve.errors import InputError
from tuneserve.gateway._keys import read_keys


@dataclass(frozen=True)
class Settings:
    """How the gateway treats requests.

    ``max_body_bytes`` bounds a request body. ``allowed_hosts``, where given, are the only names that a ``Host`` header
    may carry, in lower case and without port. ``api_keys`` is a file of keys, one of which each request must have.
    At most ``max_queue`` sequences wait for room in the engine. Web pages of ``cors_origins`` may use the API, those of
    any origin with ``*``. ``log_prompts`` puts request bodies into the log. Traces go to ``otlp_endpoint``, the URL
    of an OTLP collector over HTTP. With ``lenient``, fields that nobody knows are ignored instead of refused.
    ``adapter_dirs`` are where adapters may be loaded from while the server runs.
    """

    max_body_bytes: int = 8 << 20
    allowed_hosts: frozenset[str] | None = None
    api_keys: Path | None = None
    max_queue: int = 1024
    cors_origins: tuple[str, ...] = ()
    log_prompts: bool = False
    otlp_endpoint: str | None = None
    lenient: bool = False
    adapter_dirs: tuple[Path, ...] = ()

    def check(self) -> None:
        """Check what can be checked before anything is loaded.

        Raises:
            InputError: the keys cannot be read, an origin is none, or traces cannot be sent.
        """
        if self.api_keys is not None:
            read_keys(self.api_keys)
        for origin in self.cors_origins:
            parts = urlsplit(origin)
            if origin != "*" and (not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}"):
                raise InputError(
                    f"{origin!r} is not the origin of a web page; write it like https://chat.example, without a path."
                )
        for directory in self.adapter_dirs:
            if not directory.is_dir():
                raise InputError(f"{directory} is no directory of adapters; create it, or name another --adapter-dir.")
        if self.otlp_endpoint is not None:
            from tuneserve.gateway._trace import require_opentelemetry

            require_opentelemetry(self.otlp_endpoint)
