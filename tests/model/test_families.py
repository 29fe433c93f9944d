"""Protects: every family computes what Transformers computes, in one piece, in chunks, token by token, and batched."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneserve.adapters import WeightedAdapter, merge_model, open_adapter
from tuneserve.checkpoint import WeightReader, open_checkpoint
from tuneserve.errors import CheckpointError
from tuneserve.kernels.attention import attend
from tuneserve.model import Decoder, DeltaState, Scan, load_weights
from tuneserve.spec import ModelSpec, read_spec

from .families import FAMILIES, SMALL, WRAPPERS

Make = Callable[..., Path]
# Of the largest logit; sums are in another order than Transformers'.
TOLERANCE = 1e-4
LONG = 48
ADAPTED = {
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "qwen3_5": ["in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj", "q_proj", "k_proj", "o_proj"],
    "gemma4 shared": ["q_proj", "v_proj", "gate_proj", "per_layer_projection", "per_layer_model_projection"],
}


class Context:
    """The simplest cache: each sequence's keys and values as they came, attended to with a mask for each."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self._keys: dict[tuple[int, int], torch.Tensor] = {}
        self._values: dict[tuple[int, int], torch.Tensor] = {}

    def __call__(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        *,
        window: int | None,
        **how: Any,
    ) -> torch.Tensor:
        out, begin = [], 0
        for sequence, count in enumerate(self.rows):
            if count == 0:
                continue
            rows = slice(begin, begin + count)
            keys = self._grown(self._keys, layer, sequence, None if key is None else key[rows])
            values = self._grown(self._values, layer, sequence, None if value is None else value[rows])
            length = len(keys)
            last = torch.arange(length - count, length)[:, None]
            seen = (torch.arange(length) <= last) & (torch.arange(length) > last - (window or length))
            mask = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
            context = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
            out.append(attend(query[None, rows], *context, mask[None], **how)[0])
            begin += count
        return torch.cat(out)

    def _grown(
        self, cache: dict[tuple[int, int], torch.Tensor], layer: int, sequence: int, new: torch.Tensor | None
    ) -> torch.Tensor:
        if new is not None:
            old = cache.get((layer, sequence))
            cache[layer, sequence] = new if old is None else torch.cat((old, new))
        return cache[layer, sequence]


class Carried:
    """The simplest keeper of states: one sequence after the other."""

    def __init__(self, spec: ModelSpec, context: Context) -> None:
        self._spec, self._context = spec, context
        self._states: dict[tuple[int, int], DeltaState] = {}

    def __call__(self, layer: int, inputs: torch.Tensor, scan: Scan) -> torch.Tensor:
        out = []
        for sequence, rows in enumerate(torch.split(inputs, self._context.rows)):
            if len(rows):
                state = self._states.setdefault((layer, sequence), self._empty(layer))
                out.append(scan(rows[None], state)[0])
        return torch.cat(out)

    def _empty(self, layer: int) -> DeltaState:
        net = self._spec.layer(layer).delta_net
        assert net is not None
        past = torch.zeros(1, net.kernel - 1, net.conv_size)
        return DeltaState(past, torch.zeros(1, net.value_heads, net.key_dim, net.value_dim))


def open_decoder(directory: Path, context_length: int | None = None) -> Decoder:
    spec = read_spec(json.loads((directory / "config.json").read_text()))
    return decoder_of(spec, open_checkpoint(directory), context_length)


def decoder_of(spec: ModelSpec, reader: WeightReader, context_length: int | None = None) -> Decoder:
    weights = load_weights(spec, reader, torch.float32, torch.device("cpu"))
    return Decoder(spec, weights, context_length or spec.context_length)


def compute(decoder: Decoder, prompts: list[list[int]], chunk: int) -> list[torch.Tensor]:
    """Return each prompt's logits, computed in one batch, ``chunk`` tokens of each at a time."""
    context, found = Context(), [[] for _ in prompts]  # type: ignore[var-annotated]
    carried = Carried(decoder.spec, context)
    for begin in range(0, max(map(len, prompts)), chunk):
        parts = [prompt[begin : begin + chunk] for prompt in prompts]
        context.rows = [len(part) for part in parts]
        positions = [begin + index for part in parts for index in range(len(part))]
        ids = torch.tensor([token for part in parts for token in part])
        logits = decoder.logits(decoder.forward(ids, torch.tensor(positions), context, carried))
        for mine, part in zip(found, torch.split(logits, context.rows), strict=True):
            mine.append(part)
    return [torch.cat(mine) for mine in found]


def transformers_logits(
    directory: Path, prompts: list[list[int]], dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="eager").eval()
    with torch.inference_mode():
        return [model(torch.tensor([prompt]), use_cache=False).logits[0] for prompt in prompts]


def prompt(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 96, (length,), generator=generator).tolist()


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(name: str, make_family: Make) -> None:
    directory = make_family(name)
    # Beyond every window and every original length.
    prompts = [prompt(LONG, 1), prompt(5, 2), prompt(33, 3)]
    short = name == "phi3 longrope"
    if short:
        prompts = [part[:32] for part in prompts]
    decoder = open_decoder(directory, 32 if short else None)
    expected = transformers_logits(directory, prompts)
    for chunk in (LONG, 7, 1):
        for found, wanted in zip(compute(decoder, prompts, chunk), expected, strict=True):
            assert_close(found, wanted)


def test_a_long_context_takes_the_long_factors(make_family: Make) -> None:
    directory = make_family("phi3 longrope")
    text = prompt(LONG, 1)
    (found,), (expected,) = compute(open_decoder(directory), [text], 7), transformers_logits(directory, [text])
    assert_close(found, expected)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_are_read_from_one_tensor_and_from_many(name: str, make_family: Make, tmp_path: Path) -> None:
    directory = make_family(name)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(directory / "config.json", other)
    save_file(stacked(load_file(directory / "model.safetensors")), other / "model.safetensors")
    text = prompt(9, 1)
    for found, expected in zip(*(compute(open_decoder(each), [text], 9) for each in (directory, other)), strict=True):
        assert torch.equal(found, expected)


def stacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put the experts of each layer into one tensor, under the names that Transformers 5 has in memory."""
    found: dict[str, dict[int, dict[str, torch.Tensor]]] = {}
    kept = {}
    for name, tensor in tensors.items():
        layer, inside, rest = name.replace("block_sparse_moe", "mlp").partition(".mlp.experts.")
        if inside:
            number, part, _ = rest.split(".")
            found.setdefault(layer, {}).setdefault(int(number), {})[part] = tensor
        else:
            kept[layer] = tensor
    assert found, "the checkpoint has no experts one by one"
    for layer, experts in found.items():
        parts = [experts[number] for number in range(len(experts))]
        gate, up, down = ("w1", "w3", "w2") if "w1" in parts[0] else ("gate_proj", "up_proj", "down_proj")
        gate_up = torch.stack([torch.cat((part[gate], part[up])) for part in parts])
        kept[f"{layer}.mlp.experts.gate_up_proj"] = gate_up
        kept[f"{layer}.mlp.experts.down_proj"] = torch.stack([part[down] for part in parts])
    return kept


@pytest.mark.parametrize("name", ADAPTED)
def test_an_adapter_is_merged_as_peft_applies_it(name: str, make_family: Make, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    directory = make_family(name)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    with warnings.catch_warnings():
        # PEFT asks Transformers in a way that is going to change.
        warnings.simplefilter("ignore", FutureWarning)
        tuned = get_peft_model(model, LoraConfig(r=4, target_modules=ADAPTED[name])).eval()
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.2
    tuned.save_pretrained(tmp_path / "adapter")
    config = json.loads((directory / "config.json").read_text())
    adapter = WeightedAdapter(open_adapter(tmp_path / "adapter"))
    merged = merge_model(open_checkpoint(directory), config, [adapter], "float32")
    text = prompt(20, 1)
    (plain,) = compute(open_decoder(directory), [text], 20)
    (found,) = compute(decoder_of(read_spec(merged.config), merged), [text], 20)
    with torch.inference_mode():
        expected = tuned(input_ids=torch.tensor([text]), use_cache=False).logits[0]
    assert_close(found, expected)
    assert (plain - expected).abs().max() > 100 * TOLERANCE * expected.abs().max()


def wrapped(wrapper: str) -> Any:
    """Return the configuration of a tiny multimodal model."""
    from transformers import AutoConfig

    name, vision, fields = WRAPPERS[wrapper]
    family, own = FAMILIES[name]
    text = {**SMALL, **own, "model_type": family}
    return AutoConfig.for_model(wrapper, text_config=text, vision_config=vision, **fields)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_text_part_of_a_multimodal_model_is_computed(wrapper: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(
        wrapped(wrapper), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.3
    model.save_pretrained(tmp_path)
    assert any("vision_tower" in name or "visual" in name for name in open_checkpoint(tmp_path).tensors)
    text_ids = prompt(20, 1)
    (found,) = compute(open_decoder(tmp_path), [text_ids], 7)
    with torch.inference_mode():
        assert_close(found, model(input_ids=torch.tensor([text_ids]), use_cache=False).logits[0])


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("qwen3_5", {"mtp.layers.0.mlp.down_proj.weight": (4, 4)}),
        ("gemma4 shared", {"model.layers.4.self_attn.k_proj.weight": (32, 32)}),
    ],
)
def test_weights_that_transformers_has_no_use_for_either_are_left_alone(
    name: str, extra: dict[str, tuple[int, ...]], make_family: Make
) -> None:
    directory = make_family(name)
    text = prompt(9, 1)
    (before,) = compute(open_decoder(directory), [text], 9)
    tensors = load_file(directory / "model.safetensors")
    more = {key: torch.ones(shape) for key, shape in extra.items()}
    save_file(tensors | more, directory / "model.safetensors")
    (after,) = compute(open_decoder(directory), [text], 9)
    assert torch.equal(before, after)
    # Only where they are known for it: the first layers have keys of their own.
    save_file(tensors | {"model.layers.0.self_attn.k_extra.weight": torch.ones(1)}, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match="k_extra"):
        open_decoder(directory)


def test_norms_that_add_one_keep_small_weights_in_16_bits(make_family: Make) -> None:
    directory = make_family("gemma2")
    spec = read_spec(json.loads((directory / "config.json").read_text()))
    reader = open_checkpoint(directory)
    weights = load_weights(spec, reader, torch.bfloat16, torch.device("cpu"))
    assert torch.equal(weights.norm, 1 + reader.read("model.norm.weight"))
    assert weights.layers[0].attention_norm.dtype == torch.float32
    decoder = Decoder(spec, weights, 64)
    context = Context()
    context.rows = [9]
    logits = decoder.logits(decoder.forward(torch.tensor(prompt(9, 1)), torch.arange(9), context))
    (exact,) = compute(open_decoder(directory), [prompt(9, 1)], 9)
    # bfloat16 keeps 8 bits, and the logits are the sum of what 4 layers round.
    assert (logits - exact).abs().max() < 0.05 * exact.abs().max()
