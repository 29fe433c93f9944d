"""``tuneserve generate``."""

import sys
import time
from typing import Annotated

import typer


def generate(
    source: Annotated[str, typer.Argument(help="A directory, org/name@revision, demo or demo:tickets.")],
    prompt: Annotated[str, typer.Argument(help="What to answer, or with --raw, to continue; - reads it from stdin.")],
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is.")] = False,
    base: Annotated[str | None, typer.Option(help="Use this base instead of the one the adapter names.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the most likely token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Sample from the most likely tokens of this share.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from that many tokens; 0 from all.")] = 0,
    min_p: Annotated[float, typer.Option(min=0, max=1, help="Drop tokens below this part of the best.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(min=0, help="Above 1, repeat less.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    weights: Annotated[
        str,
        typer.Option(help="auto keeps quantised weights in their bits where it can; dequantised; int8 or int4."),
    ] = "auto",
    cpu_step: Annotated[str, typer.Option(help="auto, compiled (C++) or eager (PyTorch).")] = "auto",
    speculation: Annotated[
        int, typer.Option(min=0, max=15, help="Tokens guessed at most from what an answer repeats.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the completion as JSON.")] = False,
) -> None:
    """Run a model here, on one prompt; the text goes to stdout as it comes.

    [dim]tuneserve generate outputs/my-adapter "Where is my parcel?"[/dim]
    """
    from tuneserve.cli._run import console, log_to_console, print_json, read_text
    from tuneserve.engines.contract import SamplingParams
    from tuneserve.errors import InputError
    from tuneserve.native import LLM

    if system is not None and raw:
        raise InputError("--system has no place in a --raw prompt; leave one of them out.")
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    params.check()
    text = read_text(sys.stdin.read) if prompt == "-" else prompt
    log_to_console()
    llm = LLM(source, base=base, dtype=dtype, weights=weights, cpu_step=cpu_step, speculation=speculation)
    messages = [{"role": "system", "content": system}] if system is not None else []
    whole = text if raw else llm.prompt_of([*messages, {"role": "user", "content": text}])
    if as_json:
        (completion,) = llm.generate([whole], params)
        usage = {"prompt_tokens": len(completion.prompt_ids), "completion_tokens": len(completion.token_ids)}
        print_json({"text": completion.text, "finish_reason": completion.finish_reason, "usage": usage})
        return
    started, pieces = time.monotonic(), 0
    for piece in llm.stream(whole, params):
        sys.stdout.write(piece)
        sys.stdout.flush()
        pieces += 1
    sys.stdout.write("\n")
    # The last piece is what was held back, not a token.
    tokens, seconds = pieces - 1, time.monotonic() - started
    console.print(f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.1f} tokens/s", style="dim")
