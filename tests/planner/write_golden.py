"""Writes the golden files anew: ``python tests/planner/write_golden.py`` from the repository's root."""

import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from tuneserve.planner import explain, plan
from tuneserve.sources import resolve

_HERE = Path(__file__).parent


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, _HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Plan every source for every machine."""
    shapes, golden = _load("conftest"), _load("test_golden")
    golden.GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        config = shapes.LLAMA_8B
        model = shapes.write_headers(
            Path(scratch) / "llama-8b", config, shapes.llama_shapes(config), resolve("demo").model_dir
        )
        for machine in golden.MACHINES:
            for source in ("demo", "demo:tickets", str(model)):
                name = source.replace(":", "-") if source != str(model) else "llama-8b"
                said = explain(plan(source, hardware=machine)).replace(str(model), "llama-8b")
                (golden.GOLDEN / f"{name}-{machine}.txt").write_text(said + "\n")


if __name__ == "__main__":
    main()
