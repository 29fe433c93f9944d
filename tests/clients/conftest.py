"""Two running servers, or those whose URLs the environment has.

This file also runs in environments that have a client and pytest and nothing else.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

collect_ignore = ["elsewhere"]


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL of the demo model on the native engine, with its adapter ``tickets``, whose template has tools."""
    yield from _server("REAL", tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL of a server whose model calls ``get_weather`` and answers once it has the result."""
    yield from _server("SCRIPTED", tmp_path_factory.mktemp("scripted"))


def _server(which: str, directory: Path) -> Iterator[str]:
    if (url := os.environ.get(f"TUNESERVE_{which}_URL")) is not None:
        yield url
        return
    from tests.clients.servers import real_server, scripted_server

    with (real_server if which == "REAL" else scripted_server)(directory) as url:
        yield url
