"""From what was measured to the step that broke: base, base precision, merge, quantisation, configuration, text."""

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from tuneserve.parity._audit import Audit, WeightComparison
from tuneserve.parity._report import ModuleParity, ParityReport
from tuneserve.parity._thresholds import Thresholds

_LISTED = 3
# Above this relative difference a weight is not the same one stored in fewer bits.
_FEWER_BITS = 0.3
_SAME_SHARE = 0.2
# What a configuration may say differently of the same model.
_ASIDE = frozenset(
    (
        "_name_or_path", "architectures", "auto_map", "bos_token_id", "dtype", "eos_token_id", "initializer_range",
        "max_position_embeddings", "pad_token_id", "quantization_config", "torch_dtype", "transformers_version",
        "use_cache", "attention_dropout", "_attn_implementation", "tie_word_embeddings", "vocab_size",
    )
)  # fmt: skip


def summarise(audit: Audit, limits: Thresholds) -> ModuleParity | None:
    """Return the audit in numbers and names, None if nothing was compared."""
    if not audit.found:
        return None
    shares = [found.share for found in audit.found if found.share is not None]
    worst = max(audit.found, key=lambda found: found.error)
    return ModuleParity(
        count=len({_module(found) for found in audit.found if found.adapted}),
        compared=len(audit.found),
        worst=_module(worst),
        worst_error=worst.error,
        delta_share=median(shares) if shares else None,
        skipped=tuple(_module(found) for found in audit.found if found.skipped),
        exceeded=tuple(_module(found) for found in audit.found if found.exceeded),
        changed=tuple(_module(found) for found in audit.found if not found.error <= limits.weight_error),
        unmerged=tuple(audit.unmerged),
    )


def diagnose(
    report: ParityReport, weights: Sequence[WeightComparison] = (), settings: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the steps that broke, most likely cause first; empty if nothing did.

    ``weights`` are those behind the report, and ``settings`` what differs between the two configurations.
    """
    if report.passed:
        return ()
    found = [*_of_weights(weights, report.thresholds)]
    if report.config or (report.probabilities_differ and weights and not found):
        found += _around_weights(report, settings)
    for check in report.text:
        if not check.passed and check.step not in found:
            found.append(check.step)
    if not found:
        found.append("not known: only the probabilities can be seen; compare the files that are served")
    return tuple(found)


def changed_settings(reference: Any, candidate: Any) -> list[str]:
    """Return the names of the settings in which two Transformers configurations differ."""
    return sorted(set(_differing(reference.to_dict(), candidate.to_dict())))


def _of_weights(weights: Sequence[WeightComparison], limits: Thresholds) -> Iterator[str]:
    def off(found: WeightComparison) -> bool:
        return not found.error <= limits.weight_error

    adapted = [found for found in weights if found.adapted]
    plain = [found for found in weights if not found.adapted]
    plain_off = [found for found in plain if off(found)]
    far = [found for found in plain_off if found.vector or found.relative > _FEWER_BITS]
    if far and 2 * len(plain_off) > len(plain):
        yield f"another base: {len(plain_off)} of the {len(plain)} weights that no adapter touches differ"
        return
    yield from _of_deltas([found for found in adapted if found.share is not None])
    others = [found for found in adapted if off(found) and not found.skipped and not found.exceeded]
    noisy = [found for found in (*plain_off, *others) if not found.vector and found.relative <= _FEWER_BITS]
    if 2 * len(noisy) > len([found for found in weights if not found.vector]):
        error = median(found.relative for found in noisy)
        if limits.format_error is None:
            yield f"base precision: the weights differ by {error:.1%} of their size, like those of a quantised base"
        else:
            yield f"quantisation: the weights are off by {error:.1%} of their size, {limits.format_error:.1%} expected"
    elif others or plain_off:
        step = "merge" if limits.format_error is None else "merge or quantisation"
        yield f"{step}: other weights than expected in {_names([*others, *plain_off])}"


def _of_deltas(deltas: Sequence[WeightComparison]) -> Iterator[str]:
    wrong = [found for found in deltas if found.skipped or found.exceeded]
    if not wrong:
        return
    # Where rounding takes most of a delta its share says nothing of a factor.
    shares = [found.share for found in deltas if found.share is not None and found.noise < _SAME_SHARE / 2]
    middle = median(shares) if shares else 0.0
    alike = [share for share in shares if abs(share - middle) <= _SAME_SHARE]
    if len(wrong) > 1 and 10 * len(alike) >= 9 * len(deltas) and 2 * len(wrong) > len(deltas):
        if abs(middle) <= _SAME_SHARE:
            yield "merge: the adapter is in none of its modules; the candidate is the base alone"
        else:
            yield f"merge: every delta is there {middle:.2g} times; alpha or rank was read wrongly, or it merged again"
        return
    if skipped := [found for found in wrong if found.skipped]:
        yield f"merge: the adapter was not merged into {_names(skipped)}"
    if exceeded := [found for found in wrong if found.exceeded]:
        yield f"merge: the adapter was merged too strongly into {_names(exceeded)}"


def _around_weights(report: ParityReport, settings: Sequence[str]) -> Iterator[str]:
    if settings or report.config:
        named = f" ({', '.join(settings[:_LISTED])})" if settings else ""
        yield f"configuration: the weights agree, but config.json computes something else with them{named}"
    elif report.thresholds.format_error is None:
        yield "configuration: the weights agree, but not what is computed with them"
    else:
        yield "quantisation: each weight is as the format stores it, but this model needs more bits"


def _differing(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in ours.keys() | theirs.keys():
        one, other = ours.get(key), theirs.get(key)
        if key in _ASIDE or one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differing(one, other, f"{prefix}{key}.")
        elif not (_number(one) and _number(other) and abs(one - other) <= 1e-4 * abs(one)):  # type: ignore[operator, arg-type]
            yield f"{prefix}{key}"


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _names(found: Sequence[WeightComparison]) -> str:
    names = [_module(weight) for weight in found]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _module(found: WeightComparison) -> str:
    return found.name.removesuffix(".weight")
