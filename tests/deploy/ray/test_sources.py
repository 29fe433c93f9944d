"""Protects: what a machine of the cluster does not see is refused by the machine's and the path's name."""

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneserve.deploy.ray import read_options
from tuneserve.deploy.ray._sources import local_paths, missing, resolve_all
from tuneserve.errors import SourceError

Make = Callable[..., Path]


def test_only_paths_are_looked_for() -> None:
    options = read_options(
        {"source": "org/name@main", "base": "~/base", "adapters": {"a": "./a", "b": "org/b", "c": "c.gguf"}}
    )
    assert local_paths(options) == ("~/base", "./a", "c.gguf")
    assert local_paths(read_options({"source": "demo"})) == ()


def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "there").mkdir()
    assert missing(("~/there", str(tmp_path), "/nowhere/a", "~/gone")) == ["/nowhere/a", "~/gone"]


def test_adapters_are_resolved_over_the_source(make_llama: Make, make_lora: Make) -> None:
    base = make_llama()
    adapter = make_lora(base)
    source, adapters = resolve_all(read_options({"source": str(base), "adapters": {"tuned": str(adapter)}}))
    assert source.model_dir == base and source.adapter_dir is None
    assert (adapters["tuned"].adapter_dir, adapters["tuned"].model_dir) == (adapter, base)


def test_what_cannot_be_served_is_refused(make_llama: Make) -> None:
    base = str(make_llama())
    unseen = f"the machine {socket.gethostname()} of the cluster does not see /nowhere/a; put it on a volume"
    for args, says in (
        ({"source": "/nowhere/a"}, unseen),
        ({"source": base, "adapters": {"a": "/nowhere/a"}}, unseen),
        ({"source": base, "adapters": {"a": base}}, f"{base} is a whole model, not an adapter"),
    ):
        with pytest.raises(SourceError, match=re.escape(says)):
            resolve_all(read_options(args))
