"""Who may ask, and how much: the API key of a request, and its limits."""

from pathlib import Path

from starlette.datastructures import Headers

from tuneserve.gateway._errors import ApiError
from tuneserve.gateway._keys import Key, KeyFile
from tuneserve.gateway._limits import Allowance, RateLimits

_REMEDY = "send one of this server's keys as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"


class Callers:
    """The holders of the keys in one file.

    Raises:
        InputError: the file cannot be read, or is not understood.
    """

    def __init__(self, path: Path) -> None:
        self._keys = KeyFile(path)
        self._limits = RateLimits()

    def identify(self, headers: Headers) -> Key:
        """Return the key that a request was sent with.

        Raises:
            ApiError: 401, there is none, or it is not known here.
        """
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        presented = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not presented:
            raise _unknown(f"The request has no API key; {_REMEDY}.")
        key = self._keys.find(presented)
        if key is None:
            raise _unknown(f"The API key is not known here; {_REMEDY}.")
        return key

    def admit(self, key: Key) -> Allowance:
        """Count one request that makes the server work.

        Raises:
            ApiError: 429, the key has used up what it may have for now.
        """
        names = self._keys.names
        if len(self._limits) > len(names):
            self._limits.keep_only(names)
        return self._limits.admit(key)

    def reload(self) -> None:
        """Read the file again now."""
        self._keys.reload()


def _unknown(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": 'Bearer realm="tuneserve"'})
