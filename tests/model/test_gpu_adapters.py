"""Protects: adapters beside a GPU decoder's weights compute what PEFT does unmerged; here in Triton's interpreter."""

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.native.unmerged import ALL_LINEAR, tuned
from tuneserve.adapters import read_deltas
from tuneserve.checkpoint import open_checkpoint
from tuneserve.errors import AdapterError
from tuneserve.model import load_deltas, load_weights
from tuneserve.model._gpu import GpuDecoder
from tuneserve.spec import read_spec

from .paged import Paged
from .test_families import assert_close, prompt, transformers_logits

Make = Callable[..., Path]
WIDE: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "head_dim": 32}
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        yield


class Served:
    """A GPU decoder with adapters of different ranks on different modules, and what PEFT computes with each."""

    def __init__(self, base: Path, sequences: int = 40, **options: Any) -> None:
        self.base = base
        self.config = json.loads((base / "config.json").read_text())
        self.spec = read_spec(self.config)
        self.checkpoint = open_checkpoint(base)
        weights = load_weights(self.spec, self.checkpoint, torch.float32, torch.device("cpu"))
        self.decoder = GpuDecoder(self.spec, weights, 64, sequences, **options)
        self.models: list[Any] = []
        self.paged = Paged(self.decoder, blocks=200)
        self._sequences = 0

    def add(self, slot: int, **fields: Any) -> None:
        directory = self.base.parent / f"adapter{len(self.models)}"
        self.models.append(tuned(self.base, directory, seed=len(self.models), **fields))
        deltas = read_deltas(directory, self.checkpoint, self.config, self.spec)
        self.decoder.put_adapter(slot, load_deltas(deltas, torch.float32))

    def expected(self, ids: list[int], model: int | None) -> torch.Tensor:
        if model is None:
            return transformers_logits(self.base, [ids])[0]
        with torch.no_grad():
            logits: torch.Tensor = self.models[model](input_ids=torch.tensor([ids])).logits[0]
        return logits

    def decoded(self, prompts: list[list[int]], slots: list[int]) -> torch.Tensor:
        """Return the logits of the last tokens, one decoding step after the rest of the prompts."""
        paged, first = self.paged, self._sequences
        self._sequences += len(prompts)
        for parts in ([text[:-1] for text in prompts], [text[-1:] for text in prompts]):
            batch = paged.batch(dict(enumerate(parts, start=first)))
            batch.adapters = torch.tensor(
                [slot for slot, part in zip(slots, parts, strict=True) for _ in part], dtype=torch.int32
            )
            hidden = self.decoder.forward(batch, paged.keys, paged.values)
        return self.decoder.logits(hidden)


@pytest.mark.parametrize(("family", "count"), [("llama biases", 1), ("qwen3", 4), ("llama biases", 33)])
def test_each_row_has_its_own(family: str, count: int, make_family: Make) -> None:
    served = Served(make_family(family, **WIDE))
    served.add(0, target_modules=ALL_LINEAR)
    served.add(2, target_modules=["k_proj", "up_proj", "down_proj"], rank_pattern={"up_proj": 20}, use_rslora=True)
    served.add(1, target_modules=["q_proj", "o_proj"], r=1, layers_to_transform=[1])
    models, slots = [0, None, 1, 2], [0, -1, 2, 1]
    prompts = [prompt(6 + index % 3, index) for index in range(count)]
    found = served.decoded(prompts, [slots[index % 4] for index in range(count)])
    for index in range(count):
        assert_close(found[index], served.expected(prompts[index], models[index % 4])[-1])


def test_of_attention_beside_experts(make_family: Make) -> None:
    served = Served(make_family("mixtral", **{**WIDE, "num_hidden_layers": 1}), 4)
    served.add(0, target_modules=["q_proj", "v_proj", "o_proj"])
    prompts = [prompt(4, 1), prompt(5, 2)]
    found = served.decoded(prompts, [0, -1])
    for row, text, model in zip(found, prompts, [0, None], strict=True):
        assert_close(row, served.expected(text, model)[-1])


@pytest.mark.parametrize(
    ("family", "changes", "modules"),
    [("gemma2", {}, ALL_LINEAR), ("phi3", {"partial_rotary_factor": 0.5}, FUSED)],
)
def test_beside_norms_after_products_gelu_and_heads_rotated_in_part(
    family: str, changes: dict[str, Any], modules: list[str], make_family: Make
) -> None:
    served = Served(make_family(family, **{**WIDE, "num_hidden_layers": 1}, **changes))
    served.add(0, target_modules=modules)
    for count in (1, 2, 33):
        prompts = [prompt(3 + index % 2, index) for index in range(count)]
        found = served.decoded(prompts, [0] * count)
        for row, text in zip(found, prompts, strict=True):
            assert_close(row, served.expected(text, 0)[-1])


def test_many_rows_of_a_few_adapters_are_one_product_with_the_base(make_family: Make) -> None:
    served = Served(make_family("llama biases", **{**WIDE, "num_hidden_layers": 1}))
    served.add(1, target_modules=ALL_LINEAR)
    served.add(0, target_modules=["q_proj", "v_proj", "down_proj"], r=3)
    layers = served.decoder._adapters.layers.values()
    assert all(layer.joined is not None for layer in layers)
    models, slots = [0, None, 1], [1, -1, 0]
    prompts = [prompt(2 + index % 2, index) for index in range(33)]
    found = served.decoded(prompts, [slots[index % 3] for index in range(33)])
    for index in range(33):
        assert_close(found[index], served.expected(prompts[index], models[index % 3])[-1])
    served.decoder.drop_adapter(0)
    served.decoder.drop_adapter(1)
    assert all(layer.base is not None and layer.base.weight.is_contiguous() for layer in layers)


def test_packed_weights_have_them_too(make_family: Make) -> None:
    served = Served(make_family("llama", hidden_size=128, intermediate_size=128, head_dim=32), bits="int8")
    served.add(0, target_modules=ALL_LINEAR, spread=0.3)
    for count in (3, 34):
        prompts = [prompt(6, index) for index in range(count)]
        plain, found = served.decoded(prompts, [-1] * count), served.decoded(prompts, [0] * count)
        for index in range(0, count, 11):
            change = served.expected(prompts[index], 0)[-1] - served.expected(prompts[index], None)[-1]
            # What the weights lose by rounding is about the same with and without the adapter.
            assert (found[index] - plain[index] - change).abs().mean() < 0.1 * change.abs().mean()


def test_steps_that_follow_one_another_keep_their_adapters_while_others_come(make_family: Make) -> None:
    served = Served(make_family("llama", **WIDE))
    served.add(0, target_modules=ALL_LINEAR, spread=0.2)
    paged, text = served.paged, prompt(9, 3)
    for part in (text[:-1], text[-1:]):
        batch = paged.batch({0: part})
        batch.adapters = torch.zeros(len(part), dtype=torch.int32)
        if len(part) > 1:
            served.decoder.forward(batch, paged.keys, paged.values)
    chosen = served.decoder.decode_greedily(batch, paged.keys, paged.values, 2).flatten().tolist()
    served.add(1, target_modules=ALL_LINEAR, r=40)
    chosen += served.decoder.go_on_greedily(batch.block_tables, paged.keys, paged.values, 2).flatten().tolist()
    logits = served.expected(text + chosen, 0)
    assert logits[len(text) - 1 : -1].argmax(-1).tolist() == chosen


def test_what_is_dropped_is_forgotten(make_family: Make) -> None:
    served = Served(make_family("llama", **WIDE))
    text = prompt(7, 1)
    for _ in range(2):
        served.add(0, target_modules=["q_proj", "gate_proj"], r=18)
        index = len(served.models) - 1
        assert_close(served.decoded([text], [0])[0], served.expected(text, index)[-1])
        served.decoder.drop_adapter(0)
    assert all(layer.adapters is None for layer in served.decoder._adapters.layers.values())
    assert_close(served.decoded([text], [-1])[0], served.expected(text, None)[-1])


def test_too_large_a_rank_is_refused(make_family: Make) -> None:
    served = Served(make_family("llama", **WIDE))
    with pytest.raises(AdapterError, match=r"rank 129.* up to 128"):
        served.add(0, target_modules=["q_proj"], r=129)
