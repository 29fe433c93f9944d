"""What all request schemas are made of, and how a body becomes one of them."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from tuneserve.gateway.schemas import _neutral
from tuneserve.gateway.schemas._explain import explain

MAX_COUNT = 2**31 - 1
MAX_MESSAGES = 10_000
_MAX_DEPTH = 64
_MAX_PAIRS = 64
_ROUNDS = 8

Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
TokenId = Annotated[int, Field(ge=0, le=MAX_COUNT)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
Hint = Annotated[str, Field(max_length=1024)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
ServiceTier = Literal["auto", "default", "fast", "flex", "priority", "scale", "ultrafast"]
TIERS = "Of those that wait, priority (or fast, ultrafast) goes first and flex last; the others are default."


PARSED = "What the official client made of it, and sends back with an answer of before; no effect."


def shallow(value: dict[str, Any]) -> dict[str, Any]:
    """Return ``value``, which is JSON, unless it is nested too deeply for anyone to want."""
    level: list[object] = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(shallow)]
Metadata = Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=_MAX_PAIRS)]


def one_or_many(value: object) -> object:
    """Return a single text as a list of one."""
    return [value] if isinstance(value, str) else value


class Schema(BaseModel):
    """An object in a request: what is not a field of it is an error, and so is another type."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class PromptCacheBreakpoint(Schema):
    """Where a prompt may be cut for a cache; equal beginnings of prompts are shared anyway."""

    mode: Literal["explicit"]
    ttl: Literal["30m", "12h"] | None = None


class PromptCacheOptions(Schema):
    """How prompts are cached; equal beginnings of prompts are shared anyway."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m", "12h"] | None = None
    prewarm: Literal[False] | None = None
    comparison_response_id: None = None


Parsed = TypeVar("Parsed", bound=Schema)


def parse(schema: type[Parsed], body: dict[str, Any], neutral: _neutral.Neutral, lenient: bool) -> Parsed:
    """Check ``body``; its fields that are only ``neutral`` must ask for nothing.

    With ``lenient``, what nobody knows is dropped instead of refused.

    Raises:
        ApiError: a field is wrong, named by ``param``.
    """
    fields = _neutral.drop_neutral(body, schema.model_fields, neutral, lenient=lenient)
    for _ in range(_ROUNDS if lenient else 0):
        try:
            return schema.model_validate(fields)
        except ValidationError as error:
            unknown = [each["loc"] for each in error.errors() if each["type"] == "extra_forbidden"]
            if not unknown:
                break
            for path in unknown:
                fields = _without(fields, path)
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        raise explain(error, fields) from None


def _without(value: Any, path: tuple[int | str, ...]) -> Any:
    """Return ``value`` without what is at ``path``, in which names of a union's branches are passed over."""
    for index, part in enumerate(path):
        if isinstance(value, dict) and part in value:
            if index == len(path) - 1:
                return {key: inner for key, inner in value.items() if key != part}
            return {**value, part: _without(value[part], path[index + 1 :])}
        if isinstance(value, list) and isinstance(part, int) and part < len(value):
            return [*value[:part], _without(value[part], path[index + 1 :]), *value[part + 1 :]]
    return value
