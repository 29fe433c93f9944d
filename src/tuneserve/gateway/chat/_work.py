"""From the body of a request to the sequences that the engine is to generate."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from tuneserve.errors import InputError
from tuneserve.gateway._answer import Work
from tuneserve.gateway._constraint import Constraint, constraint
from tuneserve.gateway._effort import effort_variables
from tuneserve.gateway._errors import ApiError, as_api_error
from tuneserve.gateway._generate import Job
from tuneserve.gateway._logprobs import TokenNames
from tuneserve.gateway._prompts import (
    Prompt,
    chat_max_tokens,
    chat_prompt,
    completion_max_tokens,
    the_template,
    token_ids,
)
from tuneserve.gateway._sampling import priority, samples, sampling, tier
from tuneserve.gateway._served import ServedModel
from tuneserve.gateway._shapes import Shape
from tuneserve.gateway._state import Gateway
from tuneserve.gateway.chat._calls import call_constraint, offered, reading
from tuneserve.gateway.chat._chat_shape import ChatShape
from tuneserve.gateway.chat._completion_shape import CompletionShape, Echo
from tuneserve.gateway.schemas import ChatRequest, CompletionRequest
from tuneserve.text import Detokenizer, Tokenizer
from tuneserve.text.tools import ToolDefinition


async def chat_work(gateway: Gateway, served: ServedModel, body: ChatRequest, arrived: float) -> Work:
    """Return the work that a chat completion is.

    Raises:
        ApiError: the engine or the model cannot do what is asked.
        RequestError: a value is out of its range, or the template does not take this conversation.
    """
    options = body.stream_options
    shape = ChatShape(
        model=served.name,
        names=TokenNames(served.tokenizer, bool(body.return_tokens_as_token_ids)),
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        include_usage=options is not None and bool(options.include_usage),
        service_tier=None if body.service_tier is None else tier(body.service_tier),
    )
    return await conversation_work(gateway, served, body, shape, arrived)


async def conversation_work(
    gateway: Gateway,
    served: ServedModel,
    body: ChatRequest,
    shape: Shape,
    arrived: float,
    renamed: Mapping[str, str] | None = None,
) -> Work:
    """Return the work of answering a conversation in any ``shape``; the arguments are as in :class:`Work`.

    Raises:
        ApiError: the engine or the model cannot do what is asked, or the template does not take this conversation.
    """
    renamed = renamed or {}
    with renaming(renamed):
        return await _conversation(gateway, served, body, shape, arrived, renamed)


@contextmanager
def renaming(renamed: Mapping[str, str]) -> Iterator[None]:
    """Call fields in errors as a request calls them, which is what ``renamed`` maps ours to."""
    try:
        yield
    except (ApiError, InputError) as error:
        raise as_api_error(error).renamed(renamed) from None


async def conversation_prompt(
    gateway: Gateway, served: ServedModel, body: ChatRequest, tools: Sequence[ToolDefinition], *, fits: bool = True
) -> Prompt:
    """Return a conversation as it is put to the model, with the ``tools`` that it may call.

    Raises:
        ApiError: the model cannot do what is asked, or the conversation does not fit although it should.
        RequestError: the template does not take this conversation.
    """
    variables = effort_variables(the_template(served), body.reasoning_effort)
    return await chat_prompt(served, body, gateway.workers, variables, tools=tools, fits=fits)


async def _conversation(
    gateway: Gateway,
    served: ServedModel,
    body: ChatRequest,
    shape: Shape,
    arrived: float,
    renamed: Mapping[str, str],
) -> Work:
    form = constraint(body)
    tools = offered(served, body.offered_tools)
    if form is not None and tools:
        message = f"'{form.field}' and 'tools' cannot both say what the output is; send 'tool_choice': 'none'."
        raise ApiError(400, message, param=form.field, code="unsupported_parameter")
    prompt = await conversation_prompt(gateway, served, body, tools)
    # An output that has a form is all content, thoughts among it or not.
    make_reader, visible = reading(served, tools, prompt.text, thinks=form is None)
    form = form or call_constraint(served, body, tools, prompt.text)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = sampling(served, body, chat_max_tokens(served, body, len(prompt.ids)), form, logprobs)
    stop, place = tuple(body.stop or ()), priority(body)
    return Work(
        served=served,
        shape=shape,
        jobs=[Job(prompt.ids, each, stop, place, visible) for each in samples(params, body.n or 1)],
        stream=bool(body.stream),
        metrics=gateway.metrics,
        arrived=arrived,
        count=body.n or 1,
        renamed={**_grammar_names(form, renamed), **renamed},
        make_reader=make_reader,
    )


async def completion_work(gateway: Gateway, served: ServedModel, body: CompletionRequest, arrived: float) -> Work:
    """Return the work that a plain completion is.

    Raises:
        ApiError: the engine or the model cannot do what is asked.
        RequestError: a value is out of its range.
    """
    form = constraint(body)
    prompts = await token_ids(served, body.prompt, gateway.workers, "prompt")
    count = body.n or 1
    stop, place = tuple(body.stop or ()), priority(body)
    prompt_logprobs = body.logprobs if body.echo else None
    given: Sequence[str | list[int]] = body.prompt
    jobs, echoes = [], []
    for prompt, ids in zip(given, prompts, strict=True):
        tokens = completion_max_tokens(served, body, len(ids))
        params = sampling(served, body, tokens, form, body.logprobs, prompt_logprobs)
        jobs += [Job(ids, each, stop, place) for each in samples(params, count)]
        if body.echo:
            echoes += [_echo(served.tokenizer, prompt, ids)] * count
    options = body.stream_options
    shape = CompletionShape(
        model=served.name,
        names=TokenNames(served.tokenizer, bool(body.return_tokens_as_token_ids)),
        logprobs=body.logprobs,
        include_usage=options is not None and bool(options.include_usage),
        echoes=echoes if body.echo else None,
        continues=body.max_tokens != 0,
    )
    return Work(
        served=served,
        shape=shape,
        jobs=jobs,
        stream=bool(body.stream),
        metrics=gateway.metrics,
        arrived=arrived,
        count=count,
        renamed=_grammar_names(form, {}),
    )


def _grammar_names(form: Constraint | None, renamed: Mapping[str, str]) -> dict[str, str]:
    return {} if form is None else {"grammar": renamed.get(form.field, form.field)}


def _echo(tokenizer: Tokenizer, prompt: str | list[int], ids: list[int]) -> Echo:
    reader, text, offsets = Detokenizer(tokenizer), "", []
    for token in ids:
        offsets.append(len(text))
        text += reader.push([token])
    text += reader.finish()
    return Echo(prompt if isinstance(prompt, str) else text, ids, offsets)
