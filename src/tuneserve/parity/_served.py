"""A server as the candidate: what can be seen of it is its likeliest tokens, its counts and when it stops."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from tuneserve.client import ApiError, OpenAIClient
from tuneserve.errors import SourceError
from tuneserve.parity._diagnosis import diagnose
from tuneserve.parity._metrics import TIE_MARGIN
from tuneserve.parity._places import places_of
from tuneserve.parity._probes import Probes, conversations, load_tokenizer, make_probes
from tuneserve.parity._reference_text import render
from tuneserve.parity._report import ParityReport, TextCheck
from tuneserve.parity._server import ServedPosition, served_positions
from tuneserve.parity._sides import Side
from tuneserve.parity._stream import RESIDENT_WEIGHTS, StreamedModel
from tuneserve.parity._text import ANSWER_TOKENS, GREETING, STOPS, TEMPLATE, end_tokens
from tuneserve.parity._thresholds import Thresholds, served, thresholds_for

_CONVERSATIONS = 4
_LEAST = 1e-9


@torch.inference_mode()
def verify_server(
    url: str,
    against: Side,
    *,
    method: str,
    thresholds: Thresholds | None = None,
    model: str | None = None,
    api_key: str | None = None,
) -> ParityReport:
    """Measure how far the ``model`` that the server at ``url`` has is from ``against``.

    Of each distribution the server tells its likeliest tokens. The divergence is computed over these and one bucket
    for all others, which can only make it smaller (the data-processing inequality), so it is a lower bound.

    Raises:
        InputError: the server gives no log-probabilities, or the reference cannot be loaded.
        TransportError: the server does not answer.
    """
    reference = StreamedModel(against, resident=against.weights <= RESIDENT_WEIGHTS)
    tokenizer = load_tokenizer(against.source.tokenizer_dir)
    with OpenAIClient(url, api_key) as client:
        model = model or _first(client)
        probes = make_probes(tokenizer, reference.vocabulary)
        positions = served_positions(client, model, probes.prompts())
        text = tuple(_text(client, model, tokenizer, reference)) if tokenizer is not None else ()
    return compare_positions(reference, probes, positions, tokenizer, method=method, thresholds=thresholds, text=text)


@torch.inference_mode()
def compare_positions(
    reference: StreamedModel,
    probes: Probes,
    positions: Sequence[ServedPosition],
    tokenizer: Any,
    *,
    method: str,
    thresholds: Thresholds | None = None,
    text: tuple[TextCheck, ...] = (),
) -> ParityReport:
    """Compare what is known of a server's distributions at some positions of the probes with the reference's.

    ``tokenizer`` tells the ids of tokens that are known by their text, None where all are known by id.
    """
    fields = _divergence(reference.logits(probes.ids, probes.mask), probes, positions, tokenizer)
    where = ((place.prompt, place.position) for place in positions)
    places = places_of(probes, zip(where, fields.pop("kl"), strict=True), tokenizer)
    report = ParityReport(
        method=method,
        prompts=len(probes.ids),
        positions=len(positions),
        **fields,
        lower_bound=True,
        perplexity=None,
        candidate_perplexity=None,
        modules=None,
        config=(),
        text=text,
        diagnosis=(),
        notes=("of a server only the likeliest tokens are known: the divergence is a lower bound",),
        thresholds=thresholds or served(thresholds_for(method)),
        places=places,
    )
    return replace(report, diagnosis=diagnose(report))


def _first(client: OpenAIClient) -> str:
    models = client.models()
    if not models:
        raise SourceError(f"the server at {client.url} lists no models; load one, or name it with --model.")
    return models[0].id


def _divergence(
    logits: torch.Tensor, probes: Probes, positions: Sequence[ServedPosition], tokenizer: Any
) -> dict[str, Any]:
    rows = torch.full(probes.ids.shape, -1)
    rows[probes.mask] = torch.arange(len(logits))
    kl, agrees, ties = [], 0, 0
    for place in positions:
        reference = logits[rows[place.prompt, place.position]].double().log_softmax(-1)
        top = dict(_by_id(place, reference, tokenizer))
        kl.append(_bound(reference, top))
        first = int(reference.argmax())
        chosen = max(top, key=lambda token: top[token], default=-1)
        tied = chosen != first and chosen >= 0 and float(reference[first] - reference[chosen]) < TIE_MARGIN
        agrees += chosen == first or tied
        ties += tied
    bound = torch.tensor(kl, dtype=torch.float64)
    return {
        "kl": kl,
        "mean_kl": float(bound.mean()),
        "p99_kl": float(bound.quantile(0.99)),
        "max_kl": float(bound.max()),
        "agreement": agrees / len(kl),
        "ties": ties,
    }


def _bound(reference: torch.Tensor, top: dict[int, float]) -> float:
    ids = torch.tensor(list(top), dtype=torch.int64)
    ours = torch.tensor(list(top.values()), dtype=torch.float64)
    theirs = reference[ids]
    seen = float((theirs.exp() * (theirs - ours)).sum())
    rest, our_rest = (max(_LEAST, 1 - float(values.exp().sum())) for values in (theirs, ours))
    return max(0.0, seen + rest * float(torch.tensor(rest / our_rest, dtype=torch.float64).log()))


def _by_id(place: ServedPosition, reference: torch.Tensor, tokenizer: Any) -> Iterator[tuple[int, float]]:
    """Yield the server's tokens by id; a text that several likely tokens have stays among the others."""
    texts: dict[str, list[int]] = {}
    if tokenizer is not None and any(isinstance(token, str) for token in place.top):
        for index in reference.topk(min(10 * len(place.top), len(reference))).indices.tolist():
            texts.setdefault(tokenizer.decode([index]), []).append(index)
    for token, logprob in place.top.items():
        ids = texts.get(token, []) if isinstance(token, str) else [token]
        if len(ids) == 1 and 0 <= ids[0] < len(reference):
            yield ids[0], logprob


def _text(client: OpenAIClient, model: str, tokenizer: Any, reference: StreamedModel) -> Iterator[TextCheck]:
    if not tokenizer.chat_template:
        return
    name, wrong = "tokens of conversations", []
    for messages in conversations()[:_CONVERSATIONS]:
        try:
            answer = client.chat(messages, model=model, max_tokens=1, temperature=0)
        except ApiError as error:
            yield TextCheck(name, TEMPLATE, False, str(error).rstrip("."))
            return
        expected = len(render(tokenizer, messages))
        if answer.usage is not None and answer.usage.prompt_tokens != expected:
            wrong.append(f"{answer.usage.prompt_tokens} instead of {expected}")
    yield TextCheck(name, TEMPLATE, not wrong, f"their counts are {'; '.join(wrong)}" if wrong else "the same counts")
    if reference.resident:
        yield _stopping(client, model, tokenizer, reference)


def _stopping(client: OpenAIClient, model: str, tokenizer: Any, reference: StreamedModel) -> TextCheck:
    name, messages = "a greedy answer", [{"role": "user", "content": GREETING}]
    answer = client.chat(messages, model=model, max_tokens=ANSWER_TOKENS, temperature=0)
    if answer.choices[0].finish_reason == "stop":
        return TextCheck(name, STOPS, True, "stops by itself")
    ends = end_tokens(tokenizer, reference.side.source)
    expected = reference.generate(torch.tensor([render(tokenizer, messages)]), ends, ANSWER_TOKENS)
    if expected[-1] not in ends:
        return TextCheck(name, STOPS, True, f"neither stops within {ANSWER_TOKENS} tokens")
    return TextCheck(name, STOPS, False, f"runs on where the reference stops after {len(expected)} tokens")
