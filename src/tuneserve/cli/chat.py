"""``tuneserve chat``."""

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tuneserve.client import OpenAIClient

Message = dict[str, str]
Answer = Callable[[list[Message]], Iterator[str]]


def chat(
    source: Annotated[str, typer.Argument(help="A model or adapter, or the URL of a server.")],
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    base: Annotated[str | None, typer.Option(help="Use this base instead of the one the adapter names.")] = None,
    model: Annotated[str | None, typer.Option(help="With a URL, the model to ask; the first that it lists.")] = None,
    api_key: Annotated[str | None, typer.Option(help="With a URL, its key.", envvar="TUNESERVE_API_KEY")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens per answer at most.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the most likely token.")] = 0.0,
) -> None:
    """Talk to a model in the terminal; an empty line or Ctrl-D ends.

    [dim]tuneserve chat outputs/my-adapter[/dim]
    """
    from tuneserve.errors import InputError

    if not source.startswith(("http://", "https://")):
        if model is not None or api_key is not None:
            raise InputError("--model and --api-key are for a URL, not for a model here; leave them out.")
        _converse(_from_model(source, base, max_tokens, temperature), system)
        return
    if base is not None:
        raise InputError("--base is for a model here, not for a URL; leave it out.")
    from tuneserve.client import OpenAIClient

    with OpenAIClient(source, api_key) as client:
        _converse(_from_server(client, model, max_tokens, temperature), system)


def _converse(answer: Answer, system: str | None) -> None:
    from tuneserve.cli._run import console
    from tuneserve.errors import RequestError

    messages: list[Message] = [{"role": "system", "content": system}] if system is not None else []
    while said := _read_line():
        messages.append({"role": "user", "content": said})
        pieces = []
        try:
            for piece in answer(messages):
                sys.stdout.write(piece)
                sys.stdout.flush()
                pieces.append(piece)
        except RequestError as error:
            # The conversation has become too long, or its template refuses it: say so and go on without the message.
            messages.pop()
            console.print(str(error), style="red", markup=False, soft_wrap=True)
            continue
        sys.stdout.write("\n")
        messages.append({"role": "assistant", "content": "".join(pieces)})


def _read_line() -> str:
    from tuneserve.cli._run import read_text

    if sys.stdin.isatty():
        sys.stderr.write("> ")
        sys.stderr.flush()
    return read_text(sys.stdin.readline).strip()


def _from_model(source: str, base: str | None, max_tokens: int, temperature: float) -> Answer:
    from tuneserve.engines.contract import SamplingParams
    from tuneserve.native import LLM

    params = SamplingParams(max_tokens=max_tokens, temperature=temperature)
    params.check()
    llm = LLM(source, base=base)
    return lambda messages: llm.stream(llm.prompt_of(messages), params)


def _from_server(client: "OpenAIClient", model: str | None, max_tokens: int, temperature: float) -> Answer:
    from tuneserve.client import ApiError
    from tuneserve.errors import InputError, RequestError

    if model is None:
        models = client.models()
        if not models:
            raise InputError(f"{client.url} serves no model; start one, or name it with --model.")
        model = models[0].id
    asked = model

    def answer(messages: list[Message]) -> Iterator[str]:
        chunks = client.chat_stream(messages, model=asked, max_tokens=max_tokens, temperature=temperature)
        try:
            for chunk in chunks:
                for choice in chunk.choices:
                    if choice.delta.content:
                        yield choice.delta.content
        except ApiError as error:
            if error.status == 400:
                raise RequestError(str(error)) from None
            raise

    return answer
