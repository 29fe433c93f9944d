"""Protects: where there is no place for the cache, that is said in one sentence with the remedy."""

from pathlib import Path

import pytest

from tuneserve.errors import SourceError
from tuneserve.sources import cache_directory, locked


@pytest.mark.parametrize("variable", ["TUNESERVE_CACHE", "XDG_CACHE_HOME"])
def test_without_a_home_directory_the_remedy_is_named(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNESERVE_CACHE", raising=False)
    monkeypatch.setenv(variable, "~nobody-at-all/cache")
    with pytest.raises(SourceError, match=r"no known home directory; set TUNESERVE_CACHE to a directory\.$"):
        cache_directory()


def test_a_home_directory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("TUNESERVE_CACHE", "~/mine")
    assert cache_directory() == Path("/home/me/mine")
    monkeypatch.delenv("TUNESERVE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_directory() == Path("/home/me/.cache/tuneserve")


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(SourceError, match=r"cannot be written .*; set TUNESERVE_CACHE"),
        locked(tmp_path / "file/a/lock"),
    ):
        pass
    with pytest.raises(OSError, match="mine"), locked(tmp_path / "lock"):
        raise OSError("mine")
