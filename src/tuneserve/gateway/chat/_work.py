"""From the body of a request to the sequences that the engine is to generate."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from tuneserve.engines.contract import SamplingParams
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
    truncated,
    wanted_tokens,
)
from tuneserve.gateway._sampling import priority, samples, sampling, tier
from tuneserve.gateway._served import ServedModel
from tuneserve.gateway._shapes import Shape
from tuneserve.gateway._state import Gateway
from tuneserve.gateway.chat._calls import call_constraint, offered, reading
from tuneserve.gateway.chat._chat_shape import ChatShape
from tuneserve.gateway.chat._completion_shape import CompletionShape, Echo
from tuneserve.gateway.chat._extras import Extras
from tuneserve.gateway.schemas import ChatRequest, CompletionRequest, Generation
from tuneserve.text import Detokenizer, Tokenizer
from tuneserve.text.tools import ToolDefinition

_MAX_SCORES = 1_000_000  # about 3 seconds of one core and 65 MB of JSON


async def chat_work(gateway: Gateway, served: ServedModel, body: ChatRequest, arrived: float) -> Work:
    """Return the work that a chat completion is.

    Raises:
        ApiError: the engine or the model cannot do what is asked.
        RequestError: a value is out of its range, or the template does not take this conversation.
    """
    _check_hidden(served, body)
    shape = ChatShape(
        model=served.name,
        names=TokenNames(served.tokenizer, bool(body.return_tokens_as_token_ids)),
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        extras=Extras.of(body),
        service_tier=None if body.service_tier is None else tier(body.service_tier),
        thoughts=body.include_reasoning is not False,
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
    fits = fits and body.truncate_prompt_tokens is None
    prompt = await chat_prompt(served, body, gateway.workers, variables, tools=tools, fits=fits)
    ids = truncated(served, body, body.max_completion_tokens or body.max_tokens or 1, prompt.ids)
    if len(ids) == len(prompt.ids):
        return prompt
    return Prompt(served.tokenizer.decode(ids, skip_special_tokens=False), ids)


async def _conversation(
    gateway: Gateway,
    served: ServedModel,
    body: ChatRequest,
    shape: Shape,
    arrived: float,
    renamed: Mapping[str, str],
) -> Work:
    form = constraint(served, body)
    tools = offered(served, body.offered_tools)
    if form is not None and tools:
        message = f"'{form.field}' and 'tools' cannot both say what the output is; send 'tool_choice': 'none'."
        raise ApiError(400, message, param=form.field, code="unsupported_parameter")
    prompt = await conversation_prompt(gateway, served, body, tools)
    # An output that has a form is all content, thoughts among it or not.
    make_reader, visible = reading(served, tools, prompt.text, thinks=form is None)
    form = form or call_constraint(served, body, tools, prompt.text)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    tokens = chat_max_tokens(served, body, len(prompt.ids))
    params = sampling(served, body, tokens, form, logprobs, body.prompt_logprobs)
    jobs = _jobs(served, body, prompt.ids, params, visible)
    _check_scores(body, jobs)
    return Work(
        served=served,
        shape=shape,
        jobs=jobs,
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
    form = constraint(served, body)
    cut = partial(truncated, served, body, wanted_tokens(body))
    special = body.add_special_tokens is not False
    prompts = await token_ids(served, body.prompt, gateway.workers, "prompt", add_special_tokens=special, cut=cut)
    count = body.n or 1
    asked = [each for each in (body.logprobs if body.echo else None, body.prompt_logprobs) if each is not None]
    prompt_logprobs = max(asked, default=None)
    given: Sequence[str | list[int]] = body.prompt
    jobs, echoes = [], []
    for prompt, ids in zip(given, prompts, strict=True):
        tokens = completion_max_tokens(served, body, len(ids))
        params = sampling(served, body, tokens, form, body.logprobs, prompt_logprobs)
        jobs += _jobs(served, body, ids, params)
        if body.echo:
            whole = body.truncate_prompt_tokens is None
            echoes += [_echo(served.tokenizer, prompt if whole else ids, ids)] * count
    _check_scores(body, jobs)
    shape = CompletionShape(
        model=served.name,
        names=TokenNames(served.tokenizer, bool(body.return_tokens_as_token_ids)),
        logprobs=body.logprobs,
        extras=Extras.of(body),
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


def _jobs(
    served: ServedModel,
    body: Generation,
    prompt_ids: list[int],
    params: SamplingParams,
    visible: frozenset[int] = frozenset(),
) -> list[Job]:
    """Return the samples of one prompt; ``visible`` are special tokens that their reader must see."""
    if body.skip_special_tokens is False:
        visible |= served.tokenizer.special_ids
    stop, place, shows_end = tuple(body.stop or ()), priority(served, body), bool(body.include_stop_str_in_output)
    return [Job(prompt_ids, each, stop, place, visible, shows_end) for each in samples(params, body.n or 1)]


def _check_scores(body: Generation, jobs: list[Job]) -> None:
    """Raise ApiError where prompts would have more log-probabilities than one answer should hold."""
    scored = [(len(job.prompt_ids), job.params.prompt_logprobs) for job in jobs]
    total = sum(tokens * (count + 1) for tokens, count in scored if count is not None)
    if total > _MAX_SCORES:
        field = "echo" if body.prompt_logprobs is None else "prompt_logprobs"
        message = (
            f"'{field}' asks for {total} log-probabilities of prompts, more than {_MAX_SCORES}; send fewer prompts, or "
            "ask for fewer samples or alternatives."
        )
        raise ApiError(400, message, param=field, code="invalid_value")


def _check_hidden(served: ServedModel, body: ChatRequest) -> None:
    """Raise ApiError where thoughts are not to be told, and their tokens are."""
    if body.include_reasoning is not False or served.reasoning_format is None:
        return
    for field in ("logprobs", "return_token_ids"):
        if getattr(body, field):
            message = f"'{field}' would tell the thoughts that 'include_reasoning' hides; leave one of them out."
            raise ApiError(400, message, param=field, code="invalid_value")


def _grammar_names(form: Constraint | None, renamed: Mapping[str, str]) -> dict[str, str]:
    return {} if form is None else {"grammar": renamed.get(form.field, form.field)}


def _echo(tokenizer: Tokenizer, prompt: str | list[int], ids: list[int]) -> Echo:
    reader, text, offsets = Detokenizer(tokenizer), "", []
    for token in ids:
        offsets.append(len(text))
        text += reader.push([token])
    text += reader.finish()
    return Echo(prompt if isinstance(prompt, str) else text, ids, offsets)
