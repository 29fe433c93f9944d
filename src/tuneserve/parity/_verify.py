"""The comparison of two sources."""

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from tuneserve.errors import SourceError
from tuneserve.parity._audit import Audit
from tuneserve.parity._diagnosis import changed_settings, diagnose, summarise
from tuneserve.parity._method import method_of
from tuneserve.parity._metrics import divergence
from tuneserve.parity._probes import Probes, load_tokenizer, make_probes
from tuneserve.parity._report import ParityReport
from tuneserve.parity._sides import Side, open_side
from tuneserve.parity._stream import StreamedModel
from tuneserve.parity._thresholds import Thresholds, thresholds_for
from tuneserve.sources import ResolvedSource, resolve

# Both models stay in memory if each has at most this many weights (in float32), so that they can generate too.
_RESIDENT = 150_000_000


@torch.inference_mode()
def verify(
    candidate: str | Path,
    against: str | Path | ResolvedSource,
    *,
    base: str | Path | None = None,
    method: str | None = None,
    thresholds: Thresholds | None = None,
) -> ParityReport:
    """Measure how far ``candidate`` is from the model that was trained.

    Args:
        candidate: a merged, quantised or whole model, or an adapter.
        against: the reference, usually the adapter that was trained; its own layers stay unmerged.
        base: what to use as the reference's base instead of the one its adapter names.
        method: how the candidate was made, by default what its manifest or its quantisation says.
        thresholds: what counts as the same model, by default the limits of that method.

    Raises:
        InputError: a side cannot be found or loaded, or the two do not share a vocabulary.
    """
    source = resolve(candidate)
    ours = open_side(source)
    theirs = open_side(against if isinstance(against, ResolvedSource) else resolve(against, base=base))
    method = method or method_of(source.adapter_dir or source.model_dir, ours.config)
    limits = thresholds or thresholds_for(method)

    resident = max(_weights(ours), _weights(theirs)) <= _RESIDENT
    reference, model = StreamedModel(theirs, resident=resident), StreamedModel(ours, resident=resident)
    sizes = [_vocabulary(model), _vocabulary(reference)]
    if sizes[0] != sizes[1]:
        raise SourceError(
            f"{ours.name} has a vocabulary of {sizes[0]} tokens and {theirs.name} one of {sizes[1]}, "
            "so their probabilities cannot be compared; name the reference that the candidate was made from."
        )
    probes = make_probes(load_tokenizer(theirs.source.tokenizer_dir), sizes[1])

    audit = Audit(reference, model.weights, limits.format_error)
    audited = ours.adapter_dir is None and limits.compares_weights
    if audited:
        reference.on_unit = audit.visit
    expected = reference.logits(probes.ids, probes.mask)
    if audited:
        audit.finish()
    found = divergence(expected, model.logits(probes.ids, probes.mask), probes.targets())
    fields: dict[str, Any] = asdict(found)
    if probes.random:
        fields |= {"perplexity": None, "candidate_perplexity": None}
    report = ParityReport(
        method=method,
        prompts=len(probes.ids),
        positions=int(probes.mask.sum()),
        **fields,
        lower_bound=False,
        modules=summarise(audit, limits),
        config=_other_buffers(reference, model),
        text=(),
        diagnosis=(),
        notes=(*_notes(reference, model, probes), *_rounded_away(audit)),
        thresholds=limits,
    )
    settings = changed_settings(reference.config, model.config)
    return replace(report, diagnosis=diagnose(report, audit.found, settings))


def _weights(side: Side) -> int:
    return sum(math.prod(spec.shape) for spec in side.reader.tensors.values())


def _vocabulary(model: StreamedModel) -> int:
    head = model.model.get_output_embeddings()
    if head is None:
        raise SourceError(
            f"{model.side.name} has no output embeddings, so it is no language model; name one that makes text."
        )
    return int(head.weight.shape[0])


def _other_buffers(reference: StreamedModel, candidate: StreamedModel) -> tuple[str, ...]:
    """Return what both compute from their configurations, like rotary frequencies, with different results."""
    shared = reference.buffers.keys() & candidate.buffers.keys()
    return tuple(sorted(name for name in shared if not _close(reference.buffers[name], candidate.buffers[name])))


def _close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours.double(), theirs.double(), rtol=1e-3)


def _rounded_away(audit: Audit) -> Iterator[str]:
    names = [weight.name for weight in audit.found if weight.rounded_away]
    if names:
        yield (
            f"the base was quantised before, and quantising it again rounds most of the adapter's delta away in "
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
