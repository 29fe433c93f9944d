"""Protects: a cluster that lacks what the plan needs is refused before anything is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneserve.errors import HardwareError, InputError

Render = Callable[..., dict[str, str]]
Make = Callable[..., Path]
OPTIONS: dict[str, Any] = {"image": "r.example/t:1", "volume": "models"}


def nodes(path: Path, *gpus: str | None) -> Path:
    items = [{"status": {"allocatable": {"cpu": "8"} | ({"nvidia.com/gpu": each} if each else {})}} for each in gpus]
    path.write_text(json.dumps({"kind": "List", "items": items}))
    return path


def test_enough_gpus_pass_and_processors_need_none(render: Render, make_llama: Make, tmp_path: Path) -> None:
    assert render("kubernetes", make_llama(), "2xA100-80GB", nodes=nodes(tmp_path / "a", "1", None, "1"), **OPTIONS)
    assert render("kubernetes", make_llama(), "cpu-4c-16GB", nodes=nodes(tmp_path / "b", None), **OPTIONS)


@pytest.mark.parametrize(
    ("gpus", "says"),
    [((None, "0"), "none of the cluster's 2 nodes offers nvidia.com/gpu"), (("2", "3"), "have room for 0 pods of 4")],
)
def test_too_few_gpus_are_refused(
    render: Render, llama_70b: Path, tmp_path: Path, gpus: tuple[str | None, ...], says: str
) -> None:
    with pytest.raises(HardwareError, match=says):
        render("kubernetes", llama_70b, "4xA100-80GB", nodes=nodes(tmp_path / "nodes", *gpus), **OPTIONS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"items": [1]}',
        '{"items": [{"status": {"allocatable": {"nvidia.com/gpu": "-1"}}}]}',
        "[" * 10**5,
    ],
)
def test_what_kubectl_did_not_print_is_refused(render: Render, make_llama: Make, tmp_path: Path, text: str) -> None:
    path = tmp_path / "nodes"
    path.write_text(text)
    with pytest.raises(InputError, match="is not a list of nodes; write it with 'kubectl get nodes"):
        render("kubernetes", make_llama(), "A100-80GB", nodes=path, **OPTIONS)
