"""Which of the two ways a step is computed on a CPU: compiled where it can be, eager where not."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tuneserve.engines.kind import CPU_STEPS, WEIGHTS
from tuneserve.errors import EngineError, InputError
from tuneserve.kernels import cpu
from tuneserve.kernels.cpu import Kind
from tuneserve.model import CompiledDecoder, Decoder, Weights, reasons_against
from tuneserve.native._decoders import AnyDecoder
from tuneserve.spec import ModelSpec

_BITS = {"int8": Kind.INT8, "int4": Kind.INT4}
_logger = logging.getLogger("tuneserve.native")


def prepare_step(
    spec: ModelSpec, weights: Weights, context_length: int, step: str, bits: str
) -> Decoder | CompiledDecoder:
    """Return the decoder that ``step`` and ``bits`` name; see :class:`~tuneserve.native.EngineConfig`.

    Raises:
        InputError: they name none, or the model cannot be run as they ask.
        EngineError: the compiled step was asked for, or is needed for quantised weights, and cannot be built.
    """
    if step not in CPU_STEPS:
        raise InputError(f"the CPU step {step!r} is not known; choose {', '.join(CPU_STEPS)}.")
    if bits not in WEIGHTS:
        raise InputError(f"the weights {bits!r} are not known; choose {', '.join(WEIGHTS)}.")
    quantised = _BITS.get(bits)
    must = step == "compiled" or quantised is not None
    if step == "eager":
        if quantised is not None:
            raise InputError(f"{bits} weights need the compiled step; leave cpu_step at auto, or the weights.")
        return _eager(spec, weights, context_length)
    if reasons := reasons_against(spec, weights, quantised):
        if must:
            raise InputError(
                f"the compiled step cannot run this model ({'; '.join(reasons)}); leave cpu_step and weights at auto."
            )
        _logger.warning("steps are not compiled, which is slower: %s", "; ".join(reasons))
        return _eager(spec, weights, context_length)
    try:
        library = cpu.load(cpu.build())
    except EngineError as error:
        if must:
            raise
        _logger.warning("steps are not compiled, which is slower: %s", error)
        return _eager(spec, weights, context_length)
    keep = bits == "auto"
    decoder = CompiledDecoder(spec, weights, context_length, bits=quantised, keep=keep, library=library)
    _logger.info("steps are compiled, on %d threads", decoder.threads)
    if quantised is not None:
        _logger.info("weights are quantised to %s", bits)
        return decoder
    if decoder.kept:
        _logger.info("weights stay in the bits that they are stored in: %s", _listed(decoder.kept))
    if decoder.dequantised and not keep:
        _logger.info("weights are dequantised, as was asked for: %s", _listed(decoder.dequantised))
    elif decoder.dequantised:
        _warn_of(
            decoder.dequantised,
            "the compiled step has no kernel for how they are stored, or an adapter is folded into them",
        )
    return decoder


def _eager(spec: ModelSpec, weights: Weights, context_length: int) -> Decoder:
    if stored := weights.stored_as():
        _warn_of(stored, "only the compiled step computes with fewer bits")
    return Decoder(spec, weights.loaded(), context_length)


def _warn_of(stored: Counter[str], reason: str) -> None:
    _logger.warning("weights are dequantised: %s; %s", _listed(stored), reason)


def _listed(stored: Counter[str]) -> str:
    return ", ".join(f"{count} of {how}" for how, count in stored.most_common())


@contextmanager
def half_the_threads(decoder: AnyDecoder) -> Iterator[None]:
    """Let PyTorch use half the processors inside, beside a compiled decoder.

    After each of its own parallel operations PyTorch's threads spin for a while, in case there is another, and would
    take the processors from the threads of the step that follows.
    """
    before = torch.get_num_threads()
    if not isinstance(decoder, CompiledDecoder) or before == 1:
        yield
        return
    torch.set_num_threads(before // 2)
    try:
        yield
    finally:
        torch.set_num_threads(before)
