"""The reference's side of a check of a running engine, as a process: ``python -m tuneserve.parity.probing CHECK``.

CHECK is a :class:`Check` in JSON. On standard output it sends the probe prompts (:class:`Prompts`), reads what the
engine says of them (:class:`Answers`) from standard input, and sends the report (:class:`Verdict`), a line each. So
what serves needs neither Transformers nor PyTorch, and none of its threads is kept from serving.
"""

import os
import sys

import msgspec

from tuneserve.engines.probes import Answers, Check, Failed, Prompts, Verdict
from tuneserve.errors import InputError, TuneserveError
from tuneserve.parity._method import method_of
from tuneserve.parity._probes import load_tokenizer, make_probes
from tuneserve.parity._served import compare_positions
from tuneserve.parity._server import ServedPosition
from tuneserve.parity._shell import quiet
from tuneserve.parity._sides import Side, open_side
from tuneserve.parity._stream import StreamedModel
from tuneserve.sources import ResolvedSource


def run(check: Check) -> Verdict:
    """Compare the engine with the source.

    Raises:
        InputError: the source cannot be loaded as a reference.
    """
    side = open_side(check.resolved())
    reference = StreamedModel(side)
    tokenizer = load_tokenizer(side.source.tokenizer_dir)
    probes = make_probes(tokenizer, reference.vocabulary)
    _send(Prompts(probes.prompts()))
    answers = msgspec.json.decode(sys.stdin.buffer.readline(), type=Answers)
    positions = [
        ServedPosition(answer.prompt, answer.position, dict(answer.top)) for answer in answers.answers if answer.top
    ]
    report = compare_positions(reference, probes, positions, None, method=check.method or _method(side))
    return Verdict(
        passed=report.passed,
        failures=report.failures,
        diagnosis=list(report.diagnosis),
        mean_kl=report.mean_kl,
        agreement=report.agreement,
        prompts=report.prompts,
        positions=report.positions,
    )


def _method(side: Side) -> str:
    """Return how the weights are stored; of a GGUF file that does not say, at least how they are computed with."""
    source: ResolvedSource = side.source
    try:
        return method_of(source, side.config)
    except InputError:
        if source.weights_file is None:
            raise
        return "gguf:q8_0"


def _send(message: Prompts | Verdict | Failed) -> None:
    _out.write(msgspec.json.encode(message) + b"\n")
    _out.flush()


def main() -> None:
    """Run the check that the command line names."""
    try:
        with quiet():
            verdict = run(msgspec.json.decode(sys.argv[1], type=Check))
    except TuneserveError as error:
        _send(Failed(str(error)))
    else:
        _send(verdict)


if __name__ == "__main__":
    # What libraries print must not come between.
    _out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    main()
