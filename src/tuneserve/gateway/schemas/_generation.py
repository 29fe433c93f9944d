"""What every request to generate can say about it."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from tuneserve.gateway._errors import ApiError
from tuneserve.gateway.schemas._base import (
    MAX_COUNT,
    TIERS,
    Count,
    Hint,
    JsonObject,
    Schema,
    Seed,
    ServiceTier,
    StopString,
    TokenId,
    TokenIds,
    one_or_many,
)

MAX_SAMPLES = 128
MAX_TOP_LOGPROBS = 20
_MAX_CHOICES = 10_000
_MAX_BIASES = 1024
_MAX_ALLOWED = 20_000
_MAX_ID_DIGITS = 10


class StreamOptions(Schema):
    """What a stream carries beside its text."""

    include_usage: bool | None = Field(default=None, description="End the stream with a chunk that has the usage.")
    continuous_usage_stats: bool | None = Field(
        default=None, description="Tell a sample's usage so far in each of its chunks; only with include_usage."
    )
    include_obfuscation: Literal[False] | None = Field(
        default=None, description="Padding against eavesdroppers is not made."
    )


class JsonSchemaFormat(Schema):
    """A JSON schema with a name."""

    name: Annotated[str, Field(max_length=256)] = Field(description="What the schema is called; no effect.")
    description: Annotated[str, Field(max_length=65536)] | None = Field(
        default=None, description="No effect on the output."
    )
    schema_: JsonObject = Field(alias="schema", description="The JSON schema that the output satisfies.")
    strict: bool | None = Field(default=None, description="The schema is enforced either way.")


class TextFormat(Schema):
    """Output without a form."""

    type: Literal["text"]


class JsonObjectFormat(Schema):
    """Output that is a JSON object."""

    type: Literal["json_object"]


class JsonSchemaResponse(Schema):
    """Output that satisfies a JSON schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchemaFormat


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaResponse, Field(discriminator="type")]

Json = Annotated[str, Field(min_length=1)] | JsonObject
Pattern = Annotated[str, Field(min_length=1)]
Choices = Annotated[
    list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=_MAX_CHOICES, fail_fast=True)
]


class StructuredOutputs(Schema):
    """The form of the output as vLLM says it; exactly one of them."""

    json_: Json | None = Field(default=None, alias="json", description="A JSON schema, as an object or as text.")
    regex: Pattern | None = Field(default=None, description="A regular expression that the whole output matches.")
    choice: Choices | None = Field(default=None, description="Texts, one of which the output is.")
    grammar: Pattern | None = Field(default=None, description="A grammar in llguidance's Lark form.")
    json_object: bool | None = Field(default=None, description="Any JSON object.")


def _token_biases(value: dict[str, float]) -> dict[str, float]:
    for key in value:
        if not (key.isascii() and key.isdecimal() and len(key) <= _MAX_ID_DIGITS):
            raise ValueError("its keys are not all token ids")
    return value


class Sampling(Schema):
    """How tokens are chosen and where they end. Null means absent; what is absent is as the model was published."""

    max_tokens: Count | None = Field(default=None, description="At most so many tokens are generated.")
    min_tokens: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = Field(
        default=None, description="Nothing ends the output before it has so many tokens."
    )
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(default=None, description="0 is greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Choose from the likeliest tokens that together have this probability."
    )
    top_k: Annotated[int, Field(ge=-1, le=MAX_COUNT)] | None = Field(
        default=None, description="Choose from so many of the likeliest tokens; 0 or -1 from all."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="Leave out tokens less likely than this share of the likeliest."
    )
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = Field(default=None, description="Locally typical sampling.")
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = Field(
        default=None, description="Divide the logits of tokens in prompt and output; 1 is off."
    )
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = Field(
        default=None, description="Subtract from the logits of tokens in the output."
    )
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = Field(
        default=None, description="Subtract from the logits of tokens in the output, for each time they are in it."
    )
    logit_bias: (
        Annotated[
            dict[str, Annotated[float, Field(ge=-100, le=100)]],
            Field(max_length=_MAX_BIASES),
            AfterValidator(_token_biases),
        ]
        | None
    ) = Field(default=None, description="Added to the logits of tokens, by token id.")
    bad_words: Annotated[list[StopString], Field(max_length=1024, fail_fast=True)] | None = Field(
        default=None, description="Texts that do not appear in the output."
    )
    seed: Seed | None = Field(default=None, description="The same seed gives the same output.")
    stop: (
        Annotated[
            list[StopString],
            Field(max_length=16, fail_fast=True),
            BeforeValidator(one_or_many, json_schema_input_type=StopString | list[StopString]),
        ]
        | None
    ) = Field(default=None, description="Texts before which the output ends.")
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64, fail_fast=True)] | None = Field(
        default=None, description="Tokens with which the output ends."
    )
    ignore_eos: bool | None = Field(default=None, description="Go on where the model would end.")


class VllmFields(Schema):
    """What vLLM takes beside OpenAI's fields, with its meaning."""

    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        default=None,
        description="Tell the log-probability of each token of the prompt, and of so many of the likeliest at its "
        "place; not with stream.",
    )
    return_token_ids: bool | None = Field(default=None, description="Tell the token ids of prompt and output.")
    return_tokens_as_token_ids: bool | None = Field(default=None, description="Name tokens as token_id:N in logprobs.")
    truncate_prompt_tokens: Count | Literal[-1] | None = Field(
        default=None, description="Keep so many tokens of a longer prompt; -1 what the context has beside max_tokens."
    )
    truncation_side: Literal["left", "right"] | None = Field(
        default=None, description="Where truncate_prompt_tokens cuts; left, which keeps the last tokens."
    )
    allowed_token_ids: Annotated[TokenIds, Field(min_length=1, max_length=_MAX_ALLOWED)] | None = Field(
        default=None,
        description="The only tokens that the output has; it ends early only with one of them. A form of the output "
        "like response_format, so not with another.",
    )
    skip_special_tokens: bool | None = Field(
        default=None, description="Whether special tokens in the output have no text; true."
    )
    include_stop_str_in_output: bool | None = Field(
        default=None, description="Whether what ends the output, a text or a token, is part of its text; false."
    )
    priority: Seed | None = Field(
        default=None,
        description="Of the requests that wait, the lowest goes first; 0. On this scale the tier priority is -1 and "
        "flex is 1; not with them.",
    )


class Generation(VllmFields, Sampling):
    """What chat and plain completions share."""

    model: str = Field(description="The model, or one of its adapters, as /v1/models lists them.")
    stream: bool | None = Field(
        default=None, description="Send the output as server-sent events while it is generated."
    )
    stream_options: StreamOptions | None = Field(default=None, description="Only with stream.")
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] | None = Field(
        default=None, description="So many samples of each prompt, each with a seed of its own."
    )
    response_format: ResponseFormat | None = Field(default=None, description="The form of the output.")
    structured_outputs: StructuredOutputs | None = Field(
        default=None, description="The form of the output, as in vLLM."
    )
    guided_json: Json | None = Field(default=None, description="A JSON schema that the output satisfies.")
    guided_regex: Pattern | None = Field(
        default=None, description="A regular expression that the whole output matches."
    )
    guided_choice: Choices | None = Field(default=None, description="Texts, one of which the output is.")
    guided_grammar: Pattern | None = Field(default=None, description="A grammar in llguidance's Lark form.")
    user: Hint | None = Field(default=None, description="Who asks; no effect on the output.")
    service_tier: ServiceTier | None = Field(default=None, description=TIERS)

    def constraints(self) -> dict[str, Any]:
        """Return what the request says about the form of its output, by the field's name."""
        found: dict[str, Any] = {}
        if self.response_format is not None and self.response_format.type != "text":
            found["response_format"] = self.response_format
        for name in ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "allowed_token_ids"):
            if (value := getattr(self, name)) is not None:
                found[name] = value
        if self.structured_outputs is not None:
            for name in ("json_", "regex", "choice", "grammar", "json_object"):
                if (value := getattr(self.structured_outputs, name)) not in (None, False):
                    found[f"structured_outputs.{name.rstrip('_')}"] = value
        return found


def check_generation(request: Generation) -> None:
    """Raise ApiError where fields contradict each other."""
    if request.stream_options is not None:
        if not request.stream:
            message = "'stream_options' is only allowed with 'stream': true; send both or neither."
            raise ApiError(400, message, param="stream_options", code="invalid_value")
        if request.stream_options.continuous_usage_stats and not request.stream_options.include_usage:
            field = "stream_options.continuous_usage_stats"
            message = f"'{field}' is only allowed with 'include_usage': true; send both or neither."
            raise ApiError(400, message, param=field, code="invalid_value")
    if request.prompt_logprobs is not None and request.stream:
        message = "'prompt_logprobs' are not streamed; leave them or 'stream' out."
        raise ApiError(400, message, param="prompt_logprobs", code="invalid_value")
