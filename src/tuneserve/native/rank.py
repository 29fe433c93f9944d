"""A rank of a model that several devices share: ``python -m tuneserve.native.rank FD RANK PORT CONFIG``.

FD is its end of a Unix socket pair, on which the first rank says what to run; PORT is on loopback, where the ranks find
each other; CONFIG an :class:`~tuneserve.native.EngineConfig` in JSON. Standard input is a pipe that closes when the
first rank is gone, and then so is this one, whatever it waits for.
"""

import datetime
import os
import signal
import socket
import sys
import threading

import msgspec
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from tuneserve.engines._native_wire import NotStarted, frame
from tuneserve.native._batch import to_device
from tuneserve.native._decoders import LoadedDecoder
from tuneserve.native._load import EngineConfig, give_memory_back, load_decoder
from tuneserve.native._rank_wire import (
    DecodeGreedily,
    Forward,
    GoneError,
    GoOnGreedily,
    Loaded,
    Logits,
    UseCache,
    Wipe,
    receive,
)
from tuneserve.native._ranks import join_group
from tuneserve.native._runner import Runner
from tuneserve.native._sizes import free_memory
from tuneserve.native._start import load_or_say
from tuneserve.native._transformers import TransformersDecoder
from tuneserve.spec import Share

_STORE_SECONDS = 60


def main() -> None:
    """Load a share and compute with it until the first rank goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_the_first, name="first rank", daemon=True).start()
    descriptor, rank, port = map(int, sys.argv[1:4])
    config = msgspec.json.decode(sys.argv[4], type=EngineConfig)
    share = Share(rank, config.tensor_parallel)
    connection = socket.socket(fileno=descriptor)
    try:
        decoder = _load(connection, config, share)
        if decoder is not None:
            seconds = datetime.timedelta(seconds=_STORE_SECONDS)
            store = TCPStore("127.0.0.1", port, share.size, is_master=False, timeout=seconds)
            join_group(share, decoder.device, store)
            _follow(connection, decoder)
    except (GoneError, BrokenPipeError):
        pass
    # Skipping the interpreter's teardown gives gigabytes of weights back at once.
    sys.stderr.flush()
    os._exit(0)


def _leave_with_the_first() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _load(connection: socket.socket, config: EngineConfig, share: Share) -> LoadedDecoder | None:
    decoder = load_or_say(
        lambda: load_decoder(config, share), f"rank {share.rank} could not load its share of the model"
    )
    if isinstance(decoder, NotStarted):
        connection.sendall(frame(decoder))
        return None
    give_memory_back()
    connection.sendall(frame(Loaded(decoder.weight_bytes, free_memory(decoder.device))))
    return decoder


@torch.inference_mode()
def _follow(connection: socket.socket, decoder: LoadedDecoder) -> None:
    assert not isinstance(decoder, TransformersDecoder), "refused at load"
    first = receive(connection)
    assert isinstance(first, UseCache)
    runner = Runner(decoder, first.blocks, first.sequences)
    while True:
        _run(runner, receive(connection))


def _run(runner: Runner, message: object) -> None:
    device = runner.decoder.device
    match message:
        case Wipe(blocks):
            runner.wipe(blocks)
        case Forward(batch):
            runner.forward(batch.batch().to(device))
        case Logits(rows):
            hidden = torch.empty(rows, runner.decoder.spec.hidden_size, dtype=runner.decoder.dtype, device=device)
            dist.broadcast(hidden, 0)
            runner.logits(hidden)
        case DecodeGreedily(batch, steps):
            runner.decode_greedily(batch.batch().to(device), steps)
        case GoOnGreedily(tables, steps):
            runner.go_on_greedily(to_device(tables.tensor(), device), steps)


if __name__ == "__main__":
    main()
