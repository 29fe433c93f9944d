"""The OpenAPI document, made of the schemas by which requests are checked."""

from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tuneserve._version import __version__
from tuneserve.gateway.openapi._answers import Error, MessagesError
from tuneserve.gateway.openapi._operations import NEUTRAL, OPERATIONS, Operation

_Json = dict[str, Any]
_SCHEMAS = "#/components/schemas/"
_ERRORS = {
    400: "A field is wrong, named by param; or this engine or model cannot do what it asks.",
    401: "The request has no API key, or an unknown one.",
    403: "The host, the web page's origin, or what is asked is not allowed here.",
    404: "There is no such model, adapter or response.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    429: "A limit of the key, or the queue's, is reached; see Retry-After.",
    500: "The server failed; its log says why.",
    503: "The server is starting, draining, or its engine has failed; see Retry-After.",
}


@cache
def document() -> _Json:
    """Return the document (OpenAPI 3.1)."""
    names, definitions = _definitions()
    paths: _Json = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, names)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tuneserve",
            "version": __version__,
            "description": "Each field is honoured, or answered with a 400 that names it. Null means absent.",
        },
        "paths": paths,
        "components": {
            "schemas": definitions,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"header": []}],
    }


def _definitions() -> tuple[dict[type[BaseModel], str], _Json]:
    wanted: dict[type[BaseModel], None] = dict.fromkeys((Error, MessagesError))
    for operation in OPERATIONS:
        for kind in (*operation.takes, operation.answers, operation.events):
            if isinstance(kind, type):
                wanted[kind] = None
    mapping, schema = models_json_schema([(kind, "validation") for kind in wanted], ref_template=_SCHEMAS + "{model}")
    definitions = schema["$defs"]
    for kind, fields in NEUTRAL.items():
        definitions[kind.__name__]["properties"] |= {name: _neutral(values) for name, values in fields.items()}
    names = {kind: mapping[kind, "validation"]["$ref"] for kind in wanted}
    return names, dict(sorted(definitions.items()))


def _neutral(values: tuple[object, ...]) -> _Json:
    return {"enum": [*values, None], "description": "Not supported with any other value."}


def _operation(operation: Operation, names: dict[type[BaseModel], str]) -> _Json:
    error = names[MessagesError if operation.is_anthropic else Error]
    statuses = sorted({400, 401, 403, 429, 500, 503, *operation.errors, *((408, 413) if operation.takes else ())})
    responses: _Json = {"200": {"description": "Done.", "content": _contents(operation, names)}}
    for status in statuses:
        responses[str(status)] = {
            "description": _ERRORS[status],
            "content": {"application/json": {"schema": {"$ref": error}}},
        }
    if operation.path == "/health":
        responses["503"]["content"] = responses["200"]["content"]
    found: _Json = {
        "operationId": f"{operation.method}{operation.path}".replace("/", "_").replace("{", "").replace("}", ""),
        "summary": operation.summary,
        "responses": responses,
    }
    if operation.takes:
        schemas = [{"$ref": names[kind]} for kind in operation.takes]
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if operation.parameters:
        found["parameters"] = [
            {"name": name, "in": "path", "required": True, "description": text, "schema": {"type": "string"}}
            for name, text in operation.parameters.items()
        ]
    return found


def _contents(operation: Operation, names: dict[type[BaseModel], str]) -> _Json:
    if isinstance(operation.answers, str):
        return {"text/plain": {"schema": {"type": "string", "description": operation.answers}}}
    contents: _Json = {"application/json": {"schema": {"$ref": names[operation.answers]}}}
    if operation.events is not None:
        told = operation.events
        text = told if isinstance(told, str) else f"Events, each with a {told.__name__}, and [DONE] at the end."
        data: _Json = {"type": "string", "contentMediaType": "application/json"}
        if not isinstance(told, str):
            data["contentSchema"] = {"$ref": names[told]}
            data = {"anyOf": [{"const": "[DONE]"}, data]}
        properties = {"data": data, "event": {"type": "string"}}
        event = {"type": "object", "description": text, "properties": properties, "required": ["data"]}
        contents["text/event-stream"] = {"schema": event}
    return contents
