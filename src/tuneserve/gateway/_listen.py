"""The address of a server: claimed before anything is loaded, and the names it goes by."""

import errno
import ipaddress
import resource
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from tuneserve.errors import InputError

_BACKLOG = 2048
# A peer that is gone without a word is noticed after about a minute, idle or in the middle of an answer.
_IDLE_SECONDS, _PROBE_SECONDS, _PROBES = 30, 10, 3
_UNACKNOWLEDGED_MILLISECONDS = 60_000


@dataclass(frozen=True)
class Tls:
    """A certificate (with its chain) and its key, in PEM files.

    Raises:
        InputError: they cannot be used.
    """

    certificate: Path
    key: Path

    def __post_init__(self) -> None:
        try:
            # Without a password OpenSSL would ask for one at the terminal.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key, lambda: b"")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(
                f"the certificate {self.certificate} with the key {self.key} cannot be used ({reason}); "
                "name two PEM files that belong together, the key without a password."
            ) from None


def allow_many_connections() -> None:
    """Raise this process's limit on open files to what it may be raised to."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one.

    Raises:
        InputError: the address cannot be used.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"port {port} does not exist; choose one from 1 to 65535, or 0 for any that is free.")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise InputError(f"the host {host!r} is no address of this machine; use 127.0.0.1 or 0.0.0.0.") from None
    # "localhost" has two addresses, and programs that know only one of them know this one.
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _watch_peers(listener)
        listener.bind(address)
        listener.listen(_BACKLOG)  # at once: a port that is only bound can be taken by another
    except OSError as error:
        listener.close()
        raise InputError(_why_not(error, host, port)) from None
    return listener


def _watch_peers(listener: socket.socket) -> None:
    """Have the system probe idle connections; those that are accepted inherit it."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _IDLE_SECONDS),
        ("TCP_KEEPINTVL", _PROBE_SECONDS),
        ("TCP_KEEPCNT", _PROBES),
        ("TCP_USER_TIMEOUT", _UNACKNOWLEDGED_MILLISECONDS),
    ):
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def is_loopback(address: str) -> bool:
    """Say whether only this machine reaches ``address``."""
    return ipaddress.ip_address(address).is_loopback


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; stop what uses it, or choose another port, 0 for any that is free."
    if error.errno == errno.EACCES:
        return f"port {port} on {host} may not be opened by this user; choose one above 1023."
    return f"{host} port {port} cannot be opened ({error.strerror}); choose an address of this machine, like 127.0.0.1."


def host_names(address: str, host: str, allowed: tuple[str, ...]) -> frozenset[str] | None:
    """Return the names that a server listening on ``address`` answers to; None for any, beyond loopback."""
    if not is_loopback(address):
        return None
    return frozenset(name.lower() for name in ("127.0.0.1", "localhost", "::1", address, host, *allowed))


def shown(address: str, host: str) -> str:
    """Return the host to put into a URL."""
    ip = ipaddress.ip_address(address)
    if ip.is_unspecified:
        return "localhost"
    return f"[{host}]" if ":" in host else host
