"""Carry out a plan: one pass over the merged model, which reads, encodes and writes at the same time."""

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from tuneserve.artifacts._format import Format
from tuneserve.artifacts._inputs import InputDigest
from tuneserve.artifacts._journal import Journal
from tuneserve.artifacts._plan import ExportPlan
from tuneserve.artifacts._queue import ByteQueue, ClosedError
from tuneserve.checkpoint import PlacedFile, TensorSpec

# Bytes that may wait between two stages; together with the weight at hand this bounds memory.
_BACKLOG = 1 << 25
# After so many bytes what was written is put on disk and noted, for a later run to go on from.
_NOTED_EVERY = 1 << 28


@dataclass(frozen=True, slots=True)
class _Merged:
    """Bytes of a merged weight from ``offset`` on; ``tensor`` is all of it or a block of its rows."""

    spec: TensorSpec
    offset: int
    tensor: torch.Tensor

    @property
    def is_last(self) -> bool:
        return self.offset + self.tensor.nbytes == self.spec.nbytes


@dataclass(frozen=True, slots=True)
class _Write:
    """Bytes for one file of one method."""

    method: str
    file: str
    offset: int
    data: torch.Tensor


def execute(
    plan: ExportPlan, directory: Path, advance: Callable[[int], None]
) -> tuple[dict[Path, str], dict[str, dict[str, str]]]:
    """Write the planned weight files into ``directory``, or the rest of them where an earlier run was killed.

    ``advance`` is called with the bytes of each merged weight that is done.

    Returns:
        The hash of every file read, and of every file written, by method and name.

    Raises:
        InputError: an input cannot be used as it is, or changed meanwhile.
        OSError: ``directory`` cannot be written.
    """
    for format_ in plan.formats.values():
        for name in format_.observed:
            format_.observe(name, plan.model.read(name))
    names = [name for name in plan.model.tensors if any(format_.pieces(name) for format_ in plan.formats.values())]
    journal = Journal(directory, plan.fingerprint)
    done = journal.read()
    if not done:
        _clear(directory)
    for name in names[:done]:
        advance(plan.model.tensors[name].nbytes)
    with ExitStack() as stack:
        digest = stack.enter_context(InputDigest(plan.inputs))
        files = {
            method: stack.enter_context(_Files(format_, plan.directory(directory, method), names[:done]))
            for method, format_ in plan.formats.items()
        }
        merged: ByteQueue[_Merged] = ByteQueue(_BACKLOG)
        writes: ByteQueue[_Write | int] = ByteQueue(_BACKLOG)
        threads = stack.enter_context(ThreadPoolExecutor(2, "export"))
        notes = stack.enter_context(ThreadPoolExecutor(1, "journal"))
        stack.callback(merged.abandon)
        stack.callback(writes.abandon)
        reading = threads.submit(_read, plan, names[done:], merged)
        writing = threads.submit(_write, writes, files, journal, notes)
        count, unnoted = done, 0
        try:
            for part in merged:
                for write in _encoded(plan, part):
                    writes.put(write, write.data.nbytes)
                    unnoted += write.data.nbytes
                if part.is_last:
                    count += 1
                    digest.advance(count / len(names))
                    advance(part.spec.nbytes)
                    if unnoted >= _NOTED_EVERY:
                        writes.put(count, 0)
                        unnoted = 0
                del part
        except ClosedError:
            # The writer has met an error, which its result raises.
            merged.abandon()
        reading.result()
        writes.put(len(names), 0)
        writes.end()
        writing.result()
        return digest.result(), {method: opened.close() for method, opened in files.items()}


class _Files:
    """The open files of one format; ``kept`` names the weights that an earlier run has written."""

    def __init__(self, format_: Format, directory: Path, kept: Sequence[str]) -> None:
        directory.mkdir(exist_ok=True)
        ends = {file: len(planned.header) for file, planned in format_.files.items()} if kept else {}
        for name in kept:
            for piece in format_.pieces(name):
                ends[piece.file] = max(ends[piece.file], piece.offset + piece.nbytes)
        self._open = {
            file: PlacedFile(directory / file, planned.size, ends.get(file, 0))
            for file, planned in format_.files.items()
        }
        if not kept:
            for file, planned in format_.files.items():
                self._open[file].put(0, memoryview(planned.header))

    def put(self, write: _Write) -> None:
        self._open[write.file].put(write.offset, _bytes(write.data))

    def sync(self) -> None:
        for file in self._open.values():
            file.sync()

    def close(self) -> dict[str, str]:
        return {name: self._open.pop(name).close() for name in sorted(self._open)}

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.discard()


def _read(plan: ExportPlan, names: Sequence[str], merged: ByteQueue[_Merged]) -> None:
    """Put merged weights into the queue, in blocks of rows where every format takes them as they are."""
    # Blocks are small, and the other cores are busy hashing and encoding: more threads here would only spin.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in names:
            spec, offset = plan.model.tensors[name], 0
            in_blocks = all(format_.copies(name) for format_ in plan.formats.values())
            for tensor in plan.model.blocks(name) if in_blocks else (plan.model.read(name),):
                merged.put(_Merged(spec, offset, tensor), tensor.nbytes)
                offset += tensor.nbytes
                del tensor
            assert offset == spec.nbytes, f"{name} has {offset} bytes, planned were {spec.nbytes}"
    except ClosedError:
        pass
    finally:
        merged.end()
        torch.set_num_threads(threads)


def _encoded(plan: ExportPlan, part: _Merged) -> list[_Write]:
    name, writes = part.spec.name, []
    for method, format_ in plan.formats.items():
        pieces = format_.pieces(name)
        if not pieces:
            continue
        if format_.copies(name):
            (piece,) = pieces
            writes.append(_Write(method, piece.file, piece.offset + part.offset, part.tensor))
            continue
        for piece, tensor in zip(pieces, format_.encode(name, part.tensor), strict=True):
            assert tensor.nbytes == piece.nbytes, f"{name} has {tensor.nbytes} bytes, planned were {piece.nbytes}"
            writes.append(_Write(method, piece.file, piece.offset, tensor))
    return writes


def _write(
    writes: ByteQueue[_Write | int], files: dict[str, _Files], journal: Journal, notes: ThreadPoolExecutor
) -> None:
    """Write what comes; a number says how many weights are complete with what came before it."""

    def note(done: int) -> None:
        for opened in files.values():
            opened.sync()
        journal.write(done)

    noted: Future[None] | None = None
    try:
        for write in writes:
            if isinstance(write, _Write):
                files[write.method].put(write)
                continue
            if noted is not None:
                noted.result()
            noted = notes.submit(note, write)
        if noted is not None:
            noted.result()
    finally:
        writes.abandon()


def _bytes(tensor: torch.Tensor) -> memoryview:
    assert tensor.is_contiguous()
    return tensor.view(-1).view(torch.uint8).numpy().data


def _clear(directory: Path) -> None:
    """Remove what an earlier run left that is not being resumed."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()
