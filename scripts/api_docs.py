"""Write docs/api.md from the schemas by which requests are checked: ``python scripts/api_docs.py``."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuneserve.gateway.openapi import document

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
_INTRODUCTION = """# API

<!-- Written by scripts/api_docs.py; change the schemas and run it again. -->

The server speaks OpenAI's API (chat and plain completions, responses, embeddings, models), Anthropic's messages, and
vLLM's routes for tokens and adapters. A running server shows the same as this page at `/docs`, and serves it as an
OpenAPI document at `/openapi.json`.

- Each field is honoured, or answered with a 400 whose `param` names it. So is a field that nobody knows, unless the
  server runs with `--lenient`. What an engine or a model cannot do is refused in the same way.
- `null` means absent. What is absent is as the model was published (`generation_config.json`), else OpenAI's default.
- Fields of vLLM mean what they mean there, and what they ask for is where vLLM's clients look for it. An answer has at
  most 1,000,000 log-probabilities of prompts. Their `rank` is told for the likeliest that were asked for, and is null
  for a token of the prompt that is none of them.
- Errors are `{"error": {"message", "type", "param", "code"}}`; under `/v1/messages` they have Anthropic's form.
- Tool calls are found in the output by the model's own way of writing them, which its chat template shows. With
  `tool_choice` `required` or a named function, a grammar enforces them; with `auto`, what is no call is text.
- A call's arguments stream as they are generated, in pieces that joined are those of the whole answer; calls in
  Python's form (`[f(a=1)]`) come each in one piece. An answer that ends within a call has its arguments as far as they
  came, which then are no JSON. See [tools](tools.md).
- Thoughts are set apart from the answer where the chat template shows how the model marks them. An output with a form
  (`response_format`, `guided_*`, `structured_outputs`) is all content.
- Stored responses are kept in memory, at most 1,000 and 64 MiB of them, for whoever sends the same key.

Fields in bold are required.
"""


def page() -> str:
    """Return the page."""
    spec = document()
    lines = [_INTRODUCTION]
    shown: set[str] = set()
    for path, methods in spec["paths"].items():
        for method, operation in methods.items():
            lines += [f"## {method.upper()} {path}\n", f"{operation['summary']}\n"]
            lines += _request(operation, spec["components"]["schemas"], shown)
            lines.append(f"Answers: {_answers(operation)}.\n")
    lines.append("# Objects in answers\n")
    waiting = [name for name in spec["components"]["schemas"] if _is_answer(name, spec, shown)]
    for name in waiting:
        lines += _object(name, spec["components"]["schemas"])
    return "\n".join(lines).rstrip() + "\n"


def _is_answer(name: str, spec: dict[str, Any], shown: set[str]) -> bool:
    return name not in shown and bool(spec["components"]["schemas"][name].get("properties"))


def _request(operation: dict[str, Any], schemas: dict[str, Any], shown: set[str]) -> Iterator[str]:
    if "requestBody" not in operation:
        return
    waiting = list(_references(operation["requestBody"]["content"]["application/json"]["schema"]))
    while waiting:
        name = waiting.pop(0)
        if name in shown:
            yield f"`{name}` is described above.\n"
            continue
        shown.add(name)
        yield from _object(name, schemas)
        fields = schemas[name].get("properties", {}).values()
        waiting += [each for field in fields for each in _references(field) if each not in {*waiting, *shown}]


def _object(name: str, schemas: dict[str, Any]) -> Iterator[str]:
    schema = schemas[name]
    yield f"### {name}\n"
    if "description" in schema:
        yield schema["description"].replace("``", "`") + "\n"
    yield "| field | value | |\n| --- | --- | --- |"
    for field, value in schema.get("properties", {}).items():
        shown = f"**`{field}`**" if field in schema.get("required", ()) else f"`{field}`"
        yield f"| {shown} | {_type(value)} | {value.get('description', '')} |"
    yield ""


def _answers(operation: dict[str, Any]) -> str:
    kinds = []
    for kind, content in operation["responses"]["200"]["content"].items():
        told = next(_references(content["schema"]), None)
        kinds.append(f"`{told}`" if told else f"`{kind}` ({content['schema']['description'].rstrip('.')})")
    statuses = [status for status in operation["responses"] if status != "200"]
    return f"{' or '.join(kinds)}; errors {', '.join(statuses)}"


def _references(schema: dict[str, Any]) -> Iterator[str]:
    if "$ref" in schema:
        yield schema["$ref"].rpartition("/")[2]
    for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *([schema["items"]] if "items" in schema else ())):
        yield from _references(part)


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return f"`{schema['$ref'].rpartition('/')[2]}`"
    if branches := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(each) for each in branches if each.get("type") != "null")) or "`null`"
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(each)}`" for each in schema["enum"] if each is not None) or "`null`"
    kind: str = schema.get("type", "any JSON")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}" + _within(schema, "minItems", "maxItems", " of them")
    if kind == "string":
        return "text" + _within(schema, "minLength", "maxLength", " characters")
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    if "exclusiveMinimum" in schema:
        return f"{kind} (above {schema['exclusiveMinimum']:,}, up to {schema['maximum']:,})"
    return kind + _within(schema, "minimum", "maximum", "")


def _within(schema: dict[str, Any], low: str, high: str, what: str) -> str:
    least, most = schema.get(low), schema.get(high)
    if least is None and most is None:
        return ""
    if least is None:
        return f" (up to {most:,}{what})"
    return f" ({least:,} or more{what})" if most is None else f" ({least:,} to {most:,}{what})"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
