"""What is wrong with a request, said in a sentence that names the field."""

from typing import Any

from pydantic import ValidationError

from tuneserve.gateway._errors import ApiError, quoted

_FEW_ERRORS = 100  # Python objects are made for each error, and a body can hold a million


def explain(error: ValidationError, fields: dict[str, Any]) -> ApiError:
    """Return the answer to ``fields`` that did not validate: one error of them, with the field's path."""
    if error.error_count() > _FEW_ERRORS:
        return ApiError(400, f"The body has {error.error_count()} errors; correct it.", code="invalid_value")
    details = error.errors(include_url=False, include_context=False, include_input=False)
    # Of a union's branches, the one that got furthest is the one that was meant.
    first = max(details, key=lambda detail: len(detail["loc"]))
    path = quoted(_path(first["loc"], fields, missing=first["type"] == "missing"))
    if first["type"] == "missing":
        message, code = f"Missing required parameter {path}; add it.", "missing_required_parameter"
    elif first["type"] == "extra_forbidden":
        message, code = f"Unknown parameter {path}; remove it.", "unknown_parameter"
    else:
        reason = first["msg"].removeprefix("Value error, ").replace("Input", "it", 1)
        if first["type"] == "union_tag_invalid":
            reason = f"its type is none of {first['msg'].partition('expected tags: ')[2]}"
        code = "invalid_type" if first["type"].endswith("_type") else "invalid_value"
        message = f"Invalid value for {path}: {reason}; correct it."
    return ApiError(400, message, param=path[1:-1], code=code)


def _path(loc: tuple[int | str, ...], fields: Any, *, missing: bool) -> str:
    """Return ``messages[0].content`` for a location, leaving out what names a branch of a union."""
    path = ""
    for index, part in enumerate(loc):
        try:
            fields = fields[part]
        except (KeyError, IndexError, TypeError):
            if not (missing and index == len(loc) - 1):
                continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path
