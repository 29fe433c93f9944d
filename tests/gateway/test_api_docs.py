"""Protects docs/api.md from saying something else than the schemas do."""

import importlib.util
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "scripts" / "api_docs.py"


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("api_docs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_schemas_say() -> None:
    script = _script()
    assert script.page() == script.PAGE.read_text(encoding="utf-8"), "run python scripts/api_docs.py"
