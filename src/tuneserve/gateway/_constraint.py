"""The form that a request wants its output in, as a grammar for the engine."""

from dataclasses import dataclass
from typing import Any

import msgspec

from tuneserve.engines.contract import EngineInfo, Grammar
from tuneserve.gateway._errors import ApiError
from tuneserve.gateway._prompts import check_ids
from tuneserve.gateway._served import ServedModel
from tuneserve.gateway.schemas import Generation, JsonSchemaResponse

_BYTES = 200_000


@dataclass(frozen=True)
class Constraint:
    """A grammar, and the field that asked for it."""

    field: str
    grammar: Grammar


def constraint(served: ServedModel, body: Generation) -> Constraint | None:
    """Return what the request says about the form of its output.

    Raises:
        ApiError: it says two things, or one of them is malformed.
    """
    found = body.constraints()
    if not found:
        return None
    if len(found) > 1:
        first, second = list(found)[:2]
        message = f"'{second}' and '{first}' both say what the output looks like; send one of them."
        raise ApiError(400, message, param=second, code="invalid_value")
    ((field, value),) = found.items()
    return Constraint(field, _allowed(served, value) if field == "allowed_token_ids" else _grammar(field, value))


def _allowed(served: ServedModel, ids: list[int]) -> Grammar:
    """Return the grammar of any output that has only these tokens; it never lets an output end on its own."""
    check_ids(served, ids, "allowed_token_ids")
    tokens = ",".join(map(str, sorted(set(ids))))
    return Grammar(kind="lark", text=f"start: <[{tokens}]>{{{served.context_length}}}")


def _grammar(field: str, value: Any) -> Grammar:
    match field.rpartition(".")[2]:
        case "response_format" if isinstance(value, JsonSchemaResponse):
            return _json_schema(field, value.json_schema.schema_)
        case "guided_json" | "json":
            return _json_schema(field, value)
        case "guided_regex" | "regex":
            return Grammar(kind="regex", text=value)
        case "guided_choice" | "choice":
            return Grammar(kind="choice", text=_text(field, value))
        case "guided_grammar" | "grammar":
            if "::=" in value:
                message = f"'{field}' is in GBNF or EBNF; write it in Lark's form, with ':' between name and rule."
                raise ApiError(400, message, param=field, code="invalid_value")
            return Grammar(kind="lark", text=value)
    return Grammar(kind="json_object")


def _json_schema(field: str, schema: str | dict[str, Any]) -> Grammar:
    text = schema if isinstance(schema, str) else _text(field, schema)
    if isinstance(schema, str):
        try:
            parsed: Any = msgspec.json.decode(schema)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            parsed = None
        if not isinstance(parsed, dict):
            message = f"'{field}' is not the text of a JSON object; send a JSON schema."
            raise ApiError(400, message, param=field, code="invalid_value")
    return Grammar(kind="json_schema", text=text)


def _text(field: str, value: object) -> str:
    text = msgspec.json.encode(value)
    if len(text) > _BYTES:
        message = f"'{field}' has {len(text)} bytes, more than {_BYTES}; shorten it."
        raise ApiError(400, message, param=field, code="invalid_value")
    return text.decode()


def refuse_lacking_grammar(info: EngineInfo, found: Constraint) -> None:
    """Raise ApiError where the engine cannot follow this kind of grammar."""
    kind = found.grammar.kind
    if "grammar" in info.lacks or f"grammar:{kind}" in info.lacks:
        message = (
            f"'{found.field}' needs a grammar ({kind}), which the engine {info.engine} cannot follow; leave it out."
        )
        raise ApiError(400, message, param=found.field, code="unsupported_parameter")
