"""The address of a server: claimed before anything is loaded, and the names it goes by."""

import errno
import ipaddress
import socket

from tuneserve.errors import InputError

_BACKLOG = 2048


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
        listener.bind(address)
        listener.listen(_BACKLOG)  # at once: a port that is only bound can be taken by another
    except OSError as error:
        listener.close()
        raise InputError(_why_not(error, host, port)) from None
    return listener


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; stop what uses it, or choose another port, 0 for any that is free."
    if error.errno == errno.EACCES:
        return f"port {port} on {host} may not be opened by this user; choose one above 1023."
    return f"{host} port {port} cannot be opened ({error.strerror}); choose an address of this machine, like 127.0.0.1."


def host_names(address: str, host: str, allowed: tuple[str, ...]) -> frozenset[str] | None:
    """Return the names that a server listening on ``address`` answers to; None for any, beyond loopback."""
    if not ipaddress.ip_address(address).is_loopback:
        return None
    return frozenset(name.lower() for name in ("127.0.0.1", "localhost", "::1", address, host, *allowed))


def shown(address: str, host: str) -> str:
    """Return the host to put into a URL."""
    ip = ipaddress.ip_address(address)
    if ip.is_unspecified:
        return "localhost"
    return f"[{host}]" if ":" in host else host
