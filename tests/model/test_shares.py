"""Protects: a model divided over processes gives the logits of Transformers, whatever its family and its kernels."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from .conftest import write_family
from .families import FAMILIES
from .sharing import Job, run_together
from .test_families import assert_close, stacked, transformers_logits
from .test_gpu import WIDE
from .test_gpu_quantised import quantised

Logits = dict[str, list[torch.Tensor]]
SIZES = [2, 4]
GPU_FAMILIES = ["llama biases", "llama 3", "qwen3"]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    home = tmp_path_factory.mktemp("families")

    def write(name: str, **changes: object) -> str:
        return str(write_family(home / f"{len(list(home.iterdir()))}", name, **changes))

    made = [Job(name, write(name), context=32 if name == "phi3 longrope" else None) for name in FAMILIES]
    # Vocabularies that the processes do not divide, and whose last parts are short or empty.
    made += [Job(f"odd {tied}", write("llama", vocab_size=97, tie_word_embeddings=tied)) for tied in (True, False)]
    made += [Job(f"gpu {name}", write(name, **WIDE), kernels=True) for name in GPU_FAMILIES]
    made += [Job("gpu one by one", write("llama", **WIDE), (9, 7, 8), 1, kernels=True)]
    for name in ("mixtral", "qwen3_moe"):
        directory = Path(write(name))
        file = directory / "model.safetensors"
        save_file(stacked(load_file(file)), file)
        made.append(Job(f"stacked {name}", str(directory)))
    return {job.name: job for job in made}


@pytest.fixture(scope="module", params=SIZES)
def logits(request: pytest.FixtureRequest, jobs: dict[str, Job], tmp_path_factory: pytest.TempPathFactory) -> Logits:
    return run_together(list(jobs.values()), request.param, tmp_path_factory.mktemp("logits"))


NAMES = [
    *FAMILIES, "odd True", "odd False", *(f"gpu {name}" for name in GPU_FAMILIES), "gpu one by one",
    "stacked mixtral", "stacked qwen3_moe",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_whole(name: str, logits: Logits, jobs: dict[str, Job]) -> None:
    expected = transformers_logits(Path(jobs[name].directory), jobs[name].prompts)
    for found, wanted in zip(logits[name], expected, strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("method", ["nf4", "int4"])
def test_weights_in_few_bits_are_divided_as_they_are_stored(
    method: str, make_family: Callable[..., Path], tmp_path: Path
) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 64}
    directory = str(quantised(make_family("llama", **sizes), method))
    same = [
        Job("kept", directory, (5, 3), 5, kernels=True, kept=True), Job("dequantised", directory, (5, 3), 5),
    ]  # fmt: skip
    found = run_together(same, 2, tmp_path)
    for kept, exact in zip(found["kept"], found["dequantised"], strict=True):
        # NF4's table is rounded to bfloat16, for the matrix units to take it.
        assert float((kept - exact).norm() / exact.norm()) < (8e-3 if method == "nf4" else 1e-5)
