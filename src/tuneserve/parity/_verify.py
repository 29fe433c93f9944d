"""The comparison of two sources."""

from pathlib import Path

import torch

from tuneserve.checkpoint import open_checkpoint
from tuneserve.errors import SourceError
from tuneserve.parity._metrics import divergence
from tuneserve.parity._modules import compare_modules
from tuneserve.parity._probes import load_tokenizer, probe_ids
from tuneserve.parity._reference import load_model, logits
from tuneserve.parity._report import ParityReport, Thresholds
from tuneserve.sources import ResolvedSource, resolve

_ROUNDED = {"BF16": torch.bfloat16, "F16": torch.float16}


@torch.inference_mode()
def verify(
    candidate: str | Path,
    against: str | Path | ResolvedSource,
    *,
    base: str | Path | None = None,
    thresholds: Thresholds | None = None,
) -> ParityReport:
    """Measure how far ``candidate`` is from the model that was trained.

    Args:
        candidate: a merged or whole model, or an adapter.
        against: the reference, usually the adapter that was trained; its own layers stay unmerged.
        base: what to use as the reference's base instead of the one its adapter names.
        thresholds: what counts as the same model.

    Raises:
        SourceError: a side cannot be found or loaded, or the two do not share a vocabulary.
    """
    ours = resolve(candidate)
    theirs = against if isinstance(against, ResolvedSource) else resolve(against, base=base)
    candidate_model, reference_model = load_model(ours), load_model(theirs)
    comparison = compare_modules(reference_model, candidate_model, _rounded_dtype(ours.model_dir))

    sizes = [model.get_output_embeddings().weight.shape[0] for model in (candidate_model, reference_model)]  # type: ignore[operator]
    if sizes[0] != sizes[1]:
        raise SourceError(
            f"{ours.name} has a vocabulary of {sizes[0]} tokens and {theirs.name} one of {sizes[1]}, "
            "so their probabilities cannot be compared; name the reference that the candidate was made from."
        )
    probes = probe_ids(load_tokenizer(theirs.tokenizer_dir), sizes[1])
    with comparison.watching(reference_model):
        found = [divergence(logits(reference_model, ids), logits(candidate_model, ids)) for ids in probes]
    kl = torch.cat([part.kl for part in found])
    tied = torch.cat([part.tied for part in found])
    agrees = torch.cat([part.agrees for part in found]) | tied
    return ParityReport(
        prompts=len(probes),
        positions=kl.numel(),
        mean_kl=float(kl.mean()),
        max_kl=float(kl.max()),
        agreement=float(agrees.double().mean()),
        ties=int(tied.sum()),
        modules=comparison.result(),
        thresholds=thresholds or Thresholds(),
    )


def _rounded_dtype(model_dir: Path) -> torch.dtype:
    """Return the 16-bit dtype that most of the weights are stored in."""
    sizes = dict.fromkeys(_ROUNDED, 0)
    for header in open_checkpoint(model_dir).tensors.values():
        if header.dtype in sizes:
            sizes[header.dtype] += header.nbytes
    return _ROUNDED[max(sizes, key=lambda name: sizes[name])]
