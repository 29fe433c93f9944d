"""The comparison of two sources."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from tuneserve.errors import InputError, SourceError
from tuneserve.parity._audit import Audit
from tuneserve.parity._diagnosis import changed_settings, diagnose, summarise
from tuneserve.parity._method import method_of
from tuneserve.parity._metrics import divergence
from tuneserve.parity._places import places_of
from tuneserve.parity._probes import Probes, load_tokenizer, make_probes
from tuneserve.parity._report import ParityReport, TextCheck
from tuneserve.parity._served import verify_server
from tuneserve.parity._sides import open_side
from tuneserve.parity._stream import RESIDENT_WEIGHTS, StreamedModel
from tuneserve.parity._text import check_stopping, check_text
from tuneserve.parity._thresholds import Thresholds, for_requantised, thresholds_for
from tuneserve.sources import ResolvedSource, resolve
from tuneserve.text import open_tokenizer

_SERVER = ("http://", "https://")
_SIXTEEN_BIT = "merged_16bit"


@torch.inference_mode()
def verify(
    candidate: str | Path,
    against: str | Path | ResolvedSource,
    *,
    base: str | Path | None = None,
    method: str | None = None,
    thresholds: Thresholds | None = None,
    model: str | None = None,
    api_key: str | None = None,
) -> ParityReport:
    """Measure how far ``candidate`` is from the model that was trained.

    Args:
        candidate: a merged, quantised or whole model, an adapter, or an OpenAI-compatible server's URL.
        against: the reference, usually the adapter that was trained; its own layers stay unmerged.
        base: what to use as the reference's base instead of the one its adapter names.
        method: how the candidate was made, by default what its manifest or its quantisation says.
        thresholds: what counts as the same model, by default the limits of that method.
        model: with a server, its name for the model; else the first that it lists.
        api_key: with a server, its key.

    Raises:
        InputError: a side cannot be found or loaded, the two do not share a vocabulary, or a server does not tell
            its log-probabilities.
        TransportError: a server does not answer.
    """
    if not isinstance(against, ResolvedSource):
        if str(against).startswith(_SERVER):
            raise SourceError(f"{against} is a server, which does not tell all it knows; name files as the reference.")
        against = resolve(against, base=base)
    theirs = open_side(against)
    if str(candidate).startswith(_SERVER):
        return verify_server(
            str(candidate), theirs, method=method or _SIXTEEN_BIT, thresholds=thresholds, model=model, api_key=api_key
        )
    if model is not None or api_key is not None:
        raise InputError("a model's name and an API key are for a server; leave them out.")
    source = resolve(candidate)
    ours = open_side(source)
    method = method or method_of(source, ours.config)
    limits = thresholds or thresholds_for(method)

    resident = max(ours.weights, theirs.weights) <= RESIDENT_WEIGHTS
    reference, tested = StreamedModel(theirs, resident=resident), StreamedModel(ours, resident=resident)
    sizes = [tested.vocabulary, reference.vocabulary]
    if sizes[0] != sizes[1]:
        raise SourceError(
            f"{ours.name} has a vocabulary of {sizes[0]} tokens and {theirs.name} one of {sizes[1]}, "
            "so their probabilities cannot be compared; name the reference that the candidate was made from."
        )
    tokenizer = load_tokenizer(theirs.source.tokenizer_dir)
    probes = make_probes(tokenizer, sizes[1])

    audit = Audit(reference, tested.weights, limits.format_error)
    audited = ours.adapter_dir is None and limits.compares_weights
    if audited:
        reference.on_unit = audit.visit
    expected = reference.logits(probes.ids, probes.mask)
    if audited:
        audit.finish()
        reference.on_unit = None
    found = divergence(expected, tested.logits(probes.ids, probes.mask), probes.targets())
    fields: dict[str, Any] = asdict(found)
    places = places_of(probes, zip(probes.where(), fields.pop("kl"), strict=True), tokenizer)
    if probes.random:
        fields |= {"perplexity": None, "candidate_perplexity": None}
    text, notes = _text(tokenizer, reference, tested)
    if any(weight.requantised for weight in audit.found):
        limits = for_requantised(limits)
    report = ParityReport(
        method=method,
        prompts=len(probes.ids),
        positions=int(probes.mask.sum()),
        **fields,
        lower_bound=False,
        modules=summarise(audit, limits),
        config=_other_buffers(reference, tested),
        text=text,
        diagnosis=(),
        notes=(*_notes(reference, tested, probes), *_distorted(audit), *notes),
        thresholds=limits,
        places=places,
    )
    settings = changed_settings(reference.config, tested.config)
    return replace(report, diagnosis=diagnose(report, audit.found, settings))


def _text(
    tokenizer: Any, reference: StreamedModel, candidate: StreamedModel
) -> tuple[tuple[TextCheck, ...], tuple[str, ...]]:
    if tokenizer is None:
        return (), ()
    theirs, ours = reference.side, candidate.side
    text, notes = check_text(tokenizer, theirs.source, ours.source, ours.config)
    if not tokenizer.chat_template or not text or not all(check.passed for check in text):
        return text, notes
    if not (candidate.resident and reference.resident):
        return text, (*notes, f"no answer was generated: that takes models of at most {RESIDENT_WEIGHTS:,} weights")
    ends = open_tokenizer(ours.source.tokenizer_dir, ours.source.model_dir).end_token_ids
    return (*text, check_stopping(tokenizer, reference, candidate, ends)), notes


def _other_buffers(reference: StreamedModel, candidate: StreamedModel) -> tuple[str, ...]:
    """Return what both compute from their configurations, like rotary frequencies, with different results."""
    shared = reference.buffers.keys() & candidate.buffers.keys()
    return tuple(sorted(name for name in shared if not _close(reference.buffers[name], candidate.buffers[name])))


def _close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours.double(), theirs.double(), rtol=1e-3)


def _distorted(audit: Audit) -> Iterator[str]:
    names = [weight.name for weight in audit.found if weight.distorted]
    if names:
        yield (
            f"the base was quantised before, and quantising it again loses or distorts the adapter's delta in "
            f"{len(names)} weights ({names[0]} first); a format of more bits keeps it"
        )


def _notes(reference: StreamedModel, candidate: StreamedModel, probes: Probes) -> Iterator[str]:
    if probes.random:
        yield "there is no tokenizer, so the probes are random tokens and no text was checked"
    for model in (reference, candidate):
        if model.note:
            yield f"{model.side.name} was loaded whole, because {model.note}"
        if model.weights.unexpected:
            names = model.weights.unexpected
            yield f"{model.side.name} has {len(names)} tensors that the model does not use, {names[0]} first"
