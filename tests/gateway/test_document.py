"""Protects ``/openapi.json``: it describes every route and field, and what the server does is what it says.

The cases are schemathesis's: several hundred requests made from the document, valid ones and broken ones. No answer is
a 5xx, each has a status and a body that the document allows, and each 400 names the field.
"""

import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.gateway.conftest import make_served
from tests.gateway.test_other_routes import HostingEngine
from tuneserve.gateway import Settings, create_app
from tuneserve.gateway._page import PAGE_PATHS
from tuneserve.gateway.openapi import document
from tuneserve.gateway.openapi._operations import NEUTRAL, OPERATIONS
from tuneserve.gateway.schemas import ChatRequest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CASES = int(os.environ.get("TUNESERVE_CASES", "12"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.anyio
async def test_every_route_is_described_and_no_other(client: httpx.AsyncClient, served: Any) -> None:
    answer = (await client.get("/openapi.json")).json()
    described = {(method.upper(), path) for path, methods in answer["paths"].items() for method in methods}
    app = create_app(served)
    routes = {
        (method, getattr(route, "path", "").replace(":path}", "}"))
        for route in app.routes
        for method in getattr(route, "methods", None) or ()
        if method != "HEAD"
    }
    pages = {("GET", path) for path in (*PAGE_PATHS, "/openapi.json")}
    assert routes - pages == described


def test_the_document_is_valid_and_every_reference_leads_somewhere() -> None:
    spec = document()
    for schema in spec["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    text = json.dumps(spec)
    for reference in {part.partition('"')[0] for part in text.split('"$ref": "#/components/schemas/')[1:]}:
        assert reference in spec["components"]["schemas"]


def test_every_field_of_a_request_is_described() -> None:
    schemas = document()["components"]["schemas"]
    for operation in OPERATIONS:
        for kind in operation.takes:
            fields = {info.alias or name for name, info in kind.model_fields.items()} | set(NEUTRAL.get(kind, {}))
            assert set(schemas[kind.__name__]["properties"]) == fields
            assert schemas[kind.__name__]["additionalProperties"] is False
    assert "logit_bias" in schemas[ChatRequest.__name__]["properties"]


@pytest.fixture(scope="module")
def schema(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    served = make_served(tokenizer_dir, HostingEngine)
    app = create_app(served, Settings(max_body_bytes=100_000, adapter_dirs=(tmp_path_factory.mktemp("adapters"),)))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize("is_valid", [True, False])
@pytest.mark.parametrize(("method", "path"), [(operation.method, operation.path) for operation in OPERATIONS])
def test_the_server_does_what_the_document_says(schema: Any, method: str, path: str, is_valid: bool) -> None:
    is_valid = is_valid or method != "post"  # nothing else can be broken
    mode = GenerationMode.POSITIVE if is_valid else GenerationMode.NEGATIVE

    @settings(
        max_examples=CASES if method == "post" else 2, deadline=None, database=None, derandomize=CASES < 100,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "tuned"
        response = case.call()
        case.validate_response(response, checks=CHECKS)
        if response.status_code == 400:
            _names_the_field(response.json())

    run()


def _names_the_field(answer: dict[str, Any]) -> None:
    error = answer["error"]
    assert error.get("param") or "'" in error["message"] or error["message"].startswith("The body is not "), error
