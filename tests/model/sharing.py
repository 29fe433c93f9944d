"""Processes that compute models together: ``python -m tests.model.sharing RANK SIZE PORT FD OUT JOBS``.

The first process listens on FD, and saves the logits of each job under its name into the directory OUT.
"""

import datetime
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._C._distributed_c10d import TCPStore

from tuneserve.adapters import merge_model
from tuneserve.model import Decoder, join, load_shard
from tuneserve.model._gpu import GpuDecoder
from tuneserve.model._gpu_parallel import join_gpu
from tuneserve.native._ranks import join_group
from tuneserve.sources import open_files
from tuneserve.spec import Share, read_spec

from .paged import Paged
from .test_families import compute, prompt

SECONDS = 300


@dataclass(frozen=True)
class Job:
    """Prompts of so many random tokens through the model in ``directory``, ``chunk`` tokens at a time.

    ``kernels`` are those of the GPU, or PyTorch's operations. ``kept``: weights stay in the bits that they are stored
    in, which some must be.
    """

    name: str
    directory: str
    lengths: tuple[int, ...] = (19, 5, 11)
    chunk: int = 8
    context: int | None = None
    kernels: bool = False
    kept: bool = False

    @property
    def prompts(self) -> list[list[int]]:
        """The prompts, the same each time."""
        return [prompt(length, length) for length in self.lengths]


def run_together(jobs: list[Job], size: int, out: Path) -> dict[str, list[torch.Tensor]]:
    """Return the logits of the prompts of each job, computed by ``size`` processes."""
    listener = socket.create_server(("127.0.0.1", 0))
    port, given = listener.getsockname()[1], json.dumps([vars(job) for job in jobs])
    path = os.pathsep.join(filter(None, [str(Path("src").absolute()), *sys.path]))
    command, environment = [sys.executable, "-m", "tests.model.sharing"], {**os.environ, "PYTHONPATH": path}
    with listener:
        processes = [
            subprocess.Popen(
                [*command, *map(str, (rank, size, port, listener.fileno(), out)), given],
                pass_fds=[listener.fileno()] if rank == 0 else [],
                env=environment,
                cwd=Path(__file__).parents[2],
            )
            for rank in range(size)
        ]
    try:
        assert [process.wait(SECONDS) for process in processes] == [0] * size
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return {job.name: torch.load(out / f"{index}.pt") for index, job in enumerate(jobs)}


@torch.inference_mode()
def compute_share(job: Job, share: Share) -> list[torch.Tensor]:
    """Return a job's logits."""
    model = merge_model(*open_files(Path(job.directory), None), [], "float32")
    spec = read_spec(model.config)
    own, weights = load_shard(spec, model, torch.float32, torch.device("cpu"), share)
    context = job.context or spec.context_length
    if not job.kernels:
        return compute(join(Decoder(own, weights.loaded(), context)), job.prompts, job.chunk)
    decoder = GpuDecoder(own, weights, context, 40, keep=job.kept)
    assert bool(decoder.weights.kept) == job.kept
    return Paged(join_gpu(decoder, share.size)).logits(job.prompts, job.chunk)


def main() -> None:
    """Run the jobs."""
    rank, size, port, descriptor = map(int, sys.argv[1:5])
    how: dict[str, Any] = {"master_listen_fd": descriptor} if rank == 0 else {}
    seconds = datetime.timedelta(seconds=SECONDS)
    store = TCPStore("127.0.0.1", port, size, is_master=rank == 0, timeout=seconds, wait_for_workers=False, **how)
    share = Share(rank, size)
    join_group(share, torch.device("cpu"), store)
    for index, given in enumerate(json.loads(sys.argv[6])):
        logits = compute_share(Job(**given), share)
        if rank == 0:
            torch.save(logits, Path(sys.argv[5]) / f"{index}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
