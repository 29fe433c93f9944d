"""Protects: a quantised model is run in its own bits, as other engines run it, and what cannot be is said."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve.artifacts import export
from tuneserve.checkpoint import open_gguf
from tuneserve.engines.contract import GenerationRequest, SamplingParams
from tuneserve.errors import CheckpointError
from tuneserve.native import EngineConfig, NativeCore
from tuneserve.sources import ResolvedSource, resolve

from .conftest import write_byte_tokenizer

Make = Callable[..., Path]
IDS = [1, 44, 5, 77, 200, 31, 9, 8, 257, 256, 4, 3, 99]
SHAPE = {
    "hidden_size": 256, "intermediate_size": 512, "head_dim": 32, "num_attention_heads": 8,
    "num_key_value_heads": 4, "vocab_size": 300, "max_position_embeddings": 512,
}  # fmt: skip
GGUF = ["gguf:q8_0", "gguf:q4_0", "gguf:q4_1", "gguf:q5_0", "gguf:q5_1", "gguf:q4_k_m", "gguf:q5_k_m", "gguf:q6_k"]
INTEGERS = ["int8", "w8a16", "int4"]
FLOATS = ["fp8", "fp8_block", "mxfp8", "mxfp4a16", "merged_4bit"]
# As a part of the whole's, and the embedding, which is looked up, is a fifth of that.
MOST_BYTES = 0.8
# Root mean square, of the logits' spread. Transformers rounds dequantised weights to 16 bits. Where weights are
# integers, activations are in 8 bits here, and in llama.cpp in 8 of its own.
NEAR_FLOATS, NEAR_INTEGERS = 0.02, 0.1


@pytest.fixture(scope="module")
def whole(write_model: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model in 16 bits of which all groups divide the columns."""
    directory = tmp_path_factory.mktemp("whole") / "model"
    write_model(directory, **SHAPE)
    write_byte_tokenizer(directory, 300)
    return directory


@pytest.fixture(scope="module")
def exported(whole: Path) -> Callable[[str], Path]:
    """Return a function that makes the artifact of a method, once."""
    made = whole.with_name("out")
    export(whole, made, method=[*GGUF, *INTEGERS, *FLOATS, "gguf:q2_k"], verify=False)

    def find(method: str) -> Path:
        directory = made / method.replace(":", "-")
        return next(directory.glob("*.gguf"), directory)

    return find


def open_core(path: Path | ResolvedSource, **options: Any) -> NativeCore:
    source = path if isinstance(path, ResolvedSource) else resolve(path)
    return NativeCore(EngineConfig.of(source, context_length=128, max_running=16, **options))


def prompt_logprobs(core: NativeCore) -> torch.Tensor:
    """Return the log-probability of each token but the first."""
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    core.add(GenerationRequest(id="0", prompt_ids=IDS, params=params))
    (output,) = core.step()
    assert output.prompt_logprobs is not None
    return torch.tensor([one.logprob for one in output.prompt_logprobs])


def chosen(logits: torch.Tensor) -> torch.Tensor:
    """Return the same of logits (tokens, vocabulary)."""
    return logits.float().log_softmax(-1)[:-1].gather(1, torch.tensor(IDS[1:])[:, None])[:, 0]


def transformers_logits(directory: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    four_bits = directory.name == "merged_4bit"
    options = {} if four_bits else {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, **options)
        model = (model.dequantize() if four_bits else model).float()
        logits: torch.Tensor = model(torch.tensor([IDS])).logits[0]
        return logits


def assert_near(core: NativeCore, expected: torch.Tensor, near: float) -> None:
    off = prompt_logprobs(core) - chosen(expected)
    assert off.square().mean().sqrt() < near * expected.std()


@pytest.mark.parametrize("method", GGUF)
def test_gguf_files_run_in_their_bits_as_in_llama_cpp(
    method: str, exported: Callable[[str], Path], whole: Path, llama_logits: Callable[..., torch.Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO, "tuneserve.native")
    path = exported(method)
    core = open_core(path, dtype="float32")
    assert "weights stay in the bits that they are stored in" in caplog.text and "dequantised" not in caplog.text
    assert core.info.weight_bytes < MOST_BYTES * open_core(whole, dtype="float32").info.weight_bytes
    assert_near(core, llama_logits(path, IDS), NEAR_INTEGERS)


@pytest.mark.parametrize("method", [*INTEGERS, *FLOATS])
def test_checkpoints_run_in_their_bits_as_in_transformers(
    method: str, exported: Callable[[str], Path], whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tuneserve.native")
    path = exported(method)
    core = open_core(path, dtype="float32")
    assert "weights stay in the bits that they are stored in: 14 of" in caplog.text
    assert "dequantised" not in caplog.text
    assert core.info.weight_bytes < MOST_BYTES * open_core(whole, dtype="float32").info.weight_bytes
    assert_near(core, transformers_logits(path), NEAR_INTEGERS if method in INTEGERS else NEAR_FLOATS)


def answers(core: NativeCore, prompts: list[list[int]]) -> list[list[tuple[int, float]]]:
    """Return the tokens that follow each prompt, with their log-probabilities."""
    found: dict[str, list[tuple[int, float]]] = {}
    for index, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=8, temperature=0, logprobs=0)
        core.add(GenerationRequest(id=str(index), prompt_ids=prompt, params=params))
    while not core.idle:
        for output in core.step():
            assert output.token is not None and output.logprob is not None
            found.setdefault(output.id, []).append((output.token, output.logprob.logprob))
    return [found[str(index)] for index in range(len(prompts))]


@pytest.mark.parametrize("method", ["gguf:q4_k_m", "gguf:q4_1", "gguf:q6_k", "merged_4bit", "fp8", "int8", "int4"])
def test_answers_are_the_same_alone_and_in_a_batch_to_the_bit(method: str, exported: Callable[[str], Path]) -> None:
    core = open_core(exported(method))
    prompts = [[1 + 7 * seed % 290] * (1 + seed) + IDS[seed:] for seed in range(12)]
    assert answers(core, prompts) == [answers(core, [prompt])[0] for prompt in prompts]


def test_what_has_no_kernel_is_dequantised_and_said(
    exported: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tuneserve.native")
    path = exported("gguf:q2_k")
    prompt_logprobs(open_core(path))
    assert "weights are dequantised: " in caplog.text and "of Q2_K" in caplog.text
    caplog.clear()
    dequantised = prompt_logprobs(open_core(exported("merged_4bit"), weights="dequantised", dtype="float32"))
    assert "weights are dequantised, as was asked for: 14 of NF4" in caplog.text
    caplog.clear()
    eager = prompt_logprobs(open_core(exported("merged_4bit"), cpu_step="eager", dtype="float32"))
    assert "weights are dequantised: 14 of NF4; only the compiled step" in caplog.text
    assert torch.allclose(eager, dequantised, atol=1e-4)


def test_weights_that_an_adapter_changes_are_merged_in_full(
    exported: Callable[[str], Path], whole: Path, make_lora: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tuneserve.native")
    base = exported("merged_4bit")
    adapter = resolve(make_lora(whole, modules=("down_proj",)), base=base)
    plain = prompt_logprobs(open_core(base))
    caplog.clear()
    adapted = open_core(adapter)
    assert "stored in: 12 of NF4" in caplog.text and "dequantised: 2 of NF4" in caplog.text
    assert not torch.allclose(prompt_logprobs(adapted), plain, atol=0.1)


def test_a_file_whose_scales_are_not_numbers_is_refused(exported: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    data = bytearray(exported("gguf:q8_0").read_bytes())
    offset = open_gguf(exported("gguf:q8_0")).tensors["blk.1.ffn_down.weight"].offset
    data[offset : offset + 2] = b"\xff\x7f"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_down\.weight in .* has scales that are not finite"):
        open_core(path)
