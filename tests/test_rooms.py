"""Protects the structure: a room imports only from rooms before it, and the light ones stay light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "tuneserve"
ROOMS = (
    "_version", "errors", "report", "hardware", "client", "checkpoint", "spec", "sources", "adapters", "text",
    "engines", "kernels", "model", "native", "parity", "artifacts", "planner", "fast", "gateway", "deploy",
    "bench", "cli",
)  # fmt: skip
WITHOUT_TORCH = (
    "errors", "report", "hardware", "client", "checkpoint", "spec", "sources", "adapters", "text", "engines",
    "planner", "gateway", "deploy", "bench", "cli",
)  # fmt: skip
SERVING = ("engines.native", "gateway", "native.server")


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} uses a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_rooms_before_it(path: Path) -> None:
    room = _room(path)
    if room in ("__init__", "__main__"):
        return
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "tuneserve" and len(parts) > 1 and parts[1] in ROOMS:
            assert ROOMS.index(parts[1]) <= ROOMS.index(room), f"{room} may not import {name}"


def test_every_room_is_in_the_order() -> None:
    rooms = {_room(path) for path in PACKAGE.rglob("*.py")} - {"__init__", "__main__"}
    assert rooms <= set(ROOMS)


def _modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_rooms_without_torch_import_none() -> None:
    statement = "import " + ", ".join(f"tuneserve.{room}" for room in WITHOUT_TORCH)
    assert not _modules_after(statement) & {"torch", "transformers", "peft"}


def test_the_serving_path_imports_no_transformers() -> None:
    statement = "import " + ", ".join(f"tuneserve.{module}" for module in SERVING)
    assert not _modules_after(statement) & {"transformers", "peft"}


def test_rooms_beside_gateway_and_cli_need_no_web_framework() -> None:
    rooms = ["tuneserve." + room for room in ROOMS[1:-1] if (PACKAGE / room).exists() and room != "gateway"]
    assert not _modules_after("import " + ", ".join([*rooms, "tuneserve.fast"])) & {"fastapi", "pydantic"}
