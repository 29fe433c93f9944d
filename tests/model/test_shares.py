"""Protects: a model divided over processes gives the logits of Transformers, whatever its family and its kernels."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from .conftest import write_family
from .sharing import Job, run_together
from .test_families import assert_close, stacked, transformers_logits
from .test_gpu import WIDE
from .test_gpu_quantised import quantised

# Each has something that is divided, or must not be, in a way of its own.
FAMILIES = [
    "llama biases", "llama 3", "smollm3", "ministral3", "qwen3 bias", "gemma2", "phi3", "granite", "mixtral",
    "qwen3_moe", "gpt_oss",
]  # fmt: skip
# Over four: key heads that are held twice, in one weight with the others or alone; experts; a bias of a sum.
OVER_FOUR = ["llama biases", "qwen3 bias", "phi3", "gpt_oss"]
# NF4's table is rounded to bfloat16, for the matrix units to take it.
ERRORS = {"nf4": 8e-3, "int4": 1e-5}
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    return lambda name, **changes: write_family(tmp_path_factory.mktemp("family"), name, **changes)


def assert_as_the_whole(jobs: list[Job], size: int, out: Path) -> None:
    found = run_together(jobs, size, out)
    for job in jobs:
        expected = transformers_logits(Path(job.directory), job.prompts)
        for mine, wanted in zip(found[job.name], expected, strict=True):
            assert_close(mine, wanted)


def test_two_processes(write: Write, tmp_path: Path) -> None:
    jobs = [Job(name, str(write(name))) for name in FAMILIES]
    jobs.append(Job("gpu", str(write("llama biases", **WIDE)), (9, 5), 5, kernels=True))
    jobs.append(Job("gpu, norms after sums", str(write("gemma2", **WIDE)), (6, 3), 3, kernels=True))
    jobs.append(Job("gpu one by one", str(write("qwen3", **WIDE)), (3, 2), 1, kernels=True))
    jobs.append(Job("gpu experts", str(write("gpt_oss", **WIDE)), (5, 3), 4, kernels=True))
    for name in ("mixtral", "qwen3_moe"):
        directory = write(name)
        file = directory / "model.safetensors"
        save_file(stacked(load_file(file)), file)
        jobs.append(Job(f"{name} in one tensor", str(directory)))
    assert_as_the_whole(jobs, 2, tmp_path)


def test_four_processes(write: Write, tmp_path: Path) -> None:
    jobs = [Job(name, str(write(name))) for name in OVER_FOUR]
    # The last process has fewer rows of the head than the others.
    odd = {tied: str(write("llama", vocab_size=97, tie_word_embeddings=tied)) for tied in (True, False)}
    jobs += [Job(f"97 rows, tied: {tied}", directory) for tied, directory in odd.items()]
    assert_as_the_whole(jobs, 4, tmp_path)


def test_weights_in_few_bits_are_divided_as_they_are_stored(write: Write, tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 64}
    jobs = []
    for method in ERRORS:
        directory = str(quantised(write("llama", **sizes), method))
        jobs.append(Job(f"{method} kept", directory, (5, 3), 5, kernels=True, kept=True))
        jobs.append(Job(f"{method} dequantised", directory, (5, 3), 5))
    found = run_together(jobs, 2, tmp_path)
    for method, error in ERRORS.items():
        for kept, exact in zip(found[f"{method} kept"], found[f"{method} dequantised"], strict=True):
            assert float((kept - exact).norm() / exact.norm()) < error
