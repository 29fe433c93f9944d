"""The processes that compute a model together with this one, each a share of every layer."""

import contextlib
import datetime
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import weakref

import msgspec
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store, TCPStore

from tuneserve.engines._native_wire import NotStarted, frame
from tuneserve.engines.child import how_it_ended
from tuneserve.errors import EngineError
from tuneserve.model._parallel import add_up
from tuneserve.native._load import EngineConfig
from tuneserve.native._rank_wire import GoneError, Loaded, ToRank, receive
from tuneserve.spec import Share

# The ranks load at the same time and as much; compiling kernels at the first step takes some of them longer.
_SECONDS = 300
_CLOSE_SECONDS = 10
_LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
_logger = logging.getLogger("tuneserve.native")


class Ranks:
    """Ranks 1 and up, child processes that end with this one, however that ends.

    Once they are connected, this process ends at once when one of them does: the model is gone, and what a GPU waits
    for will not come.
    """

    def __init__(self, config: EngineConfig) -> None:
        """Start them; they load their shares meanwhile."""
        self.size = config.tensor_parallel
        self.weight_bytes = self.free = 0
        listener = socket.create_server(("127.0.0.1", 0), backlog=self.size)
        port = listener.getsockname()[1]
        self._store = TCPStore(
            "127.0.0.1", port, self.size, is_master=True, timeout=datetime.timedelta(seconds=_SECONDS),
            wait_for_workers=False, master_listen_fd=listener.detach(),
        )  # fmt: skip
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[socket.socket] = []
        self._closing = threading.Event()
        given = msgspec.json.encode(config).decode()
        for rank in range(1, self.size):
            ours, theirs = socket.socketpair()
            with theirs:
                command = [sys.executable, "-m", "tuneserve.native.rank", str(theirs.fileno()), str(rank), str(port)]
                process = subprocess.Popen(  # noqa: S603
                    [*command, given], stdin=subprocess.PIPE, pass_fds=[theirs.fileno()]
                )
            self._processes.append(process)
            self._connections.append(ours)
        self.close = weakref.finalize(self, _close, self._processes, self._connections, self._closing)

    def connect(self, device: torch.device) -> None:
        """Wait until all have loaded, then join the group of all ranks.

        Raises:
            InputError: one cannot load its share as it is.
            EngineError: one ended, or took too long.
        """
        free = []
        for rank, (process, connection) in enumerate(zip(self._processes, self._connections, strict=True), 1):
            connection.settimeout(_SECONDS)
            try:
                message = receive(connection)
            except GoneError:
                raise EngineError(f"{_ending(rank, process)} while it loaded; see the lines above.") from None
            except TimeoutError:
                raise EngineError(
                    f"rank {rank} has not loaded its share of the model {_SECONDS} seconds after the first had; "
                    "see the lines above."
                ) from None
            connection.settimeout(None)
            if isinstance(message, NotStarted):
                raise message.error()
            assert isinstance(message, Loaded)
            self.weight_bytes += message.weight_bytes
            free.append(message.free)
        self.free = min(free)
        join_group(Share(0, self.size), device, self._store)
        watch = threading.Thread(
            target=_watch, args=(self._processes, self._connections, self._closing), name="ranks", daemon=True
        )
        watch.start()

    def send(self, message: ToRank) -> None:
        """Let them do the same as this process does next.

        Raises:
            EngineError: one has ended.
        """
        data = frame(message)
        for rank, (process, connection) in enumerate(zip(self._processes, self._connections, strict=True), 1):
            try:
                connection.sendall(data)
            except OSError:
                raise EngineError(f"{_ending(rank, process)}; start the engine again.") from None


def join_group(share: Share, device: torch.device, store: Store) -> None:
    """Make the process group of all ranks, over loopback, and see that sums work.

    Raises:
        RuntimeError: the others are not there in time, or the devices cannot reach each other.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = _LOOPBACK
    on_gpus = device.type == "cuda"
    if not on_gpus:
        torch.set_num_threads(max(1, torch.get_num_threads() // share.size))
    dist.init_process_group(
        "nccl" if on_gpus else "gloo",
        store=store,
        rank=share.rank,
        world_size=share.size,
        timeout=datetime.timedelta(seconds=_SECONDS),
        device_id=device if on_gpus else None,
    )
    total = add_up(torch.ones(1, device=device)).item()
    assert total == share.size, f"{share.size} ranks add up to {total}"


def _watch(
    processes: list[subprocess.Popen[bytes]], connections: list[socket.socket], closing: threading.Event
) -> None:
    poll = select.poll()
    for connection in connections:
        poll.register(connection, select.POLLIN)
    ended = {descriptor for descriptor, _ in poll.poll()}
    if closing.is_set():
        return
    for rank, (process, connection) in enumerate(zip(processes, connections, strict=True), 1):
        if connection.fileno() in ended:
            _logger.error("%s, and the engine with it", _ending(rank, process))
    os._exit(1)


def _ending(rank: int, process: subprocess.Popen[bytes]) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_CLOSE_SECONDS)
    code = process.returncode
    return f"rank {rank} {'closed its connection' if code is None else how_it_ended(code)}"


def _close(
    processes: list[subprocess.Popen[bytes]], connections: list[socket.socket], closing: threading.Event
) -> None:
    closing.set()
    for connection in connections:
        connection.close()
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    for process in processes:
        process.kill()
        process.wait()
