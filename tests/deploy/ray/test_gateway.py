"""Protects: gateways serve the source under its name and each adapter under its own, with the texts of either."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from tests.deploy.ray.losing import info
from tuneserve.deploy.ray import read_options
from tuneserve.deploy.ray._gateway import serve_model

ADAPTER = Path(__file__).parents[3] / "examples" / "tickets" / "adapter"


def test_the_source_and_its_adapters_are_models_by_name(demo_base: Path) -> None:
    engine: Any = SimpleNamespace(info=msgspec.structs.replace(info(resumes=True), lacks=("top_k",)))
    options = read_options({"source": str(demo_base), "name": "small", "adapters": {"tickets": str(ADAPTER)}})
    served = serve_model(options, engine)
    (tuned,) = served.adapters
    assert (served.name, served.adapter, tuned.name, tuned.adapter) == ("small", None, "tickets", "tickets")
    assert served.engine is tuned.engine is engine
    messages = [{"role": "user", "content": "Hello"}]
    for model in (served, tuned):
        assert model.template is not None
        assert "Hello" in model.template.render(messages)
        assert model.tokenizer.encode("Hello", add_special_tokens=False)


def test_without_a_name_the_source_s_is_taken(demo_base: Path) -> None:
    engine: Any = SimpleNamespace(info=info(resumes=True))
    assert serve_model(read_options({"source": str(demo_base)}), engine).name == demo_base.name
