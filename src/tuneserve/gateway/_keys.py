"""The API keys: a TOML file of names and hashes, read again whenever it changes.

::

    [alice]
    sha256 = "5e88…"                # of the key, 64 hexadecimal digits
    requests_per_minute = 600       # optional, as are the others
    tokens_per_minute = 100000
    concurrent = 8
    admin = true                    # may load and unload adapters

A key has 256 random bits, so its hash needs neither salt nor stretching.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import time
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tuneserve.errors import InputError

_MAX_FILE_BYTES = 1 << 20
_MAX_KEYS = 1000
_MAX_LIMIT = 10**12
_LONGEST_KEY = 512
_LOOK_SECONDS = 1.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_logger = logging.getLogger("tuneserve.gateway")


@dataclass(frozen=True)
class Limits:
    """What one key may do; None is without limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None

    def check(self) -> None:
        """Check every value.

        Raises:
            InputError: one is not a whole number from 1 to 10^12.
        """
        for name, value in self.given().items():
            if type(value) is not int or not 1 <= value <= _MAX_LIMIT:
                raise InputError(f"{name} is {value!r}; choose a whole number from 1 to {_MAX_LIMIT}, or leave it out.")

    def given(self) -> dict[str, int]:
        """Return the limits that there are."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Key:
    """One key: who has it, the SHA-256 of it, its limits, and whether it may change what is served."""

    name: str
    digest: bytes
    limits: Limits
    admin: bool = False


class KeyFile:
    """The keys in ``path``; a change is noticed within a second, and a file that cannot be read changes nothing.

    Raises:
        InputError: the file cannot be read, or is not understood.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _fingerprint(path)
        self._keys = read_keys(path)
        self._next_look = time.monotonic() + _LOOK_SECONDS

    @property
    def names(self) -> frozenset[str]:
        """What the keys are called."""
        return frozenset(key.name for key in self._keys)

    def find(self, presented: str) -> Key | None:
        """Return the key that ``presented`` is, in a time that does not depend on how much of it is right."""
        if time.monotonic() >= self._next_look:
            self._look()
        if len(presented) > _LONGEST_KEY:
            return None
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def reload(self) -> None:
        """Read the file again now; one that is not understood is logged, and the keys stay as they were."""
        try:
            self._seen = _fingerprint(self._path)
            self._keys = read_keys(self._path)
        except InputError as error:
            _logger.error("the API keys stay as they were: %s", error)
        else:
            _logger.warning("the API keys were read again: there are %d", len(self._keys))

    def _look(self) -> None:
        self._next_look = time.monotonic() + _LOOK_SECONDS
        try:
            changed = _fingerprint(self._path) != self._seen
        except InputError:
            changed = self._seen is not None
            self._seen = None
        if changed:
            self.reload()


def _fingerprint(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name a file of API keys.") from None
    return found.st_mtime_ns, found.st_size, found.st_ino


def read_keys(path: Path) -> tuple[Key, ...]:
    """Read a file of keys.

    Raises:
        InputError: it cannot be read, others may write to it, or something in it is not understood.
    """
    table = _read_table(path)
    if not table:
        raise InputError(f"{path} has no keys; make one with 'tuneserve keys add NAME --file {path}'.")
    if len(table) > _MAX_KEYS:
        raise InputError(f"{path} has {len(table)} keys, more than {_MAX_KEYS}; remove some.")
    keys = tuple(_key(path, name, entry) for name, entry in table.items())
    if len({key.digest for key in keys}) < len(keys):
        raise InputError(f"{path} has the same key under two names; make another key for one of them.")
    return keys


def _read_table(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IWOTH:
                raise InputError(f"{path} may be written by every user; take that right away with chmod o-w.")
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name a file of API keys.") from None
    if len(data) > _MAX_FILE_BYTES:
        raise InputError(f"{path} is larger than {_MAX_FILE_BYTES} bytes; name a file of API keys.")
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        # The error quotes no line of the file, which may hold a key that was pasted there by mistake.
        raise InputError(f"{path} is not valid TOML ({type(error).__name__}); correct or replace it.") from None


def _key(path: Path, name: str, entry: object) -> Key:
    check_name(name)
    if not isinstance(entry, dict):
        raise InputError(f'the key {name!r} in {path} is no table; write [{name}] and sha256 = "..." under it.')
    known = {"admin", "sha256", *(each.name for each in fields(Limits))}
    if unknown := sorted(set(entry) - known):
        raise InputError(f"the key {name!r} in {path} has {unknown[0]!r}; use {', '.join(sorted(known))}.")
    digest = entry.pop("sha256", None)
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise InputError(f"the key {name!r} in {path} has no sha256 of 64 hexadecimal digits; make the key anew.")
    admin = entry.pop("admin", False)
    if not isinstance(admin, bool):
        raise InputError(f"the key {name!r} in {path} has admin = {admin!r}; write true or false.")
    limits = Limits(**entry)
    try:
        limits.check()
    except InputError as error:
        raise InputError(f"{path}, key {name!r}: {error}") from None
    return Key(name, bytes.fromhex(digest), limits, admin)


def check_name(name: str) -> None:
    """Check what a key is called.

    Raises:
        InputError: it cannot be called that.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"a key cannot be called {name[:80]!r}; use up to 64 letters, digits, dots, dashes and underscores."
        )


def add_key(path: Path, name: str, limits: Limits, *, admin: bool = False) -> str:
    """Make a key, write its hash into ``path``, which need not exist yet, and return it; it is kept nowhere.

    With ``admin`` it may load and unload adapters.

    Raises:
        InputError: there is one of that name, or the file or a limit is not usable.
    """
    check_name(name)
    limits.check()
    existing = read_keys(path) if path.exists() else ()
    if any(key.name == name for key in existing):
        raise InputError(f"{path} has a key called {name!r} already; choose another name, or remove it there.")
    if len(existing) >= _MAX_KEYS:
        raise InputError(f"{path} has {_MAX_KEYS} keys, which is the most; remove some.")
    key = f"ts-{secrets.token_urlsafe(32)}"
    lines = [f'["{name}"]', f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"']
    lines += [f"{limit} = {value}" for limit, value in limits.given().items()]
    lines += ["admin = true"] if admin else []
    try:
        path.touch(0o600)
        # At the end, so that what is there, comments too, stays as it was written.
        with path.open("a") as file:
            file.write(("\n" if existing else "") + "\n".join(lines) + "\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); choose another file.") from None
    return key
