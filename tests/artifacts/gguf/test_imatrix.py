"""Protects: the importance matrix is the mean square of what each weight gets to see, and serves the quantiser."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader

from tuneserve.artifacts.gguf import Imatrix, compute_imatrix
from tuneserve.errors import InputError, SourceError, SpecError
from tuneserve.sources import resolve
from tuneserve.text import open_tokenizer

Make = Callable[..., Any]
CONTEXT = 32


@pytest.fixture
def text(tmp_path: Path) -> Path:
    random.seed(0)
    words = ["weather", "Tokyo", "naïve", "12345", "the", "best", "hello\n"]
    path = tmp_path / "text.txt"
    path.write_text(" ".join(random.choices(words, k=120)))
    return path


def pieces(directory: Path, text: Path) -> torch.Tensor:
    ids = open_tokenizer(directory).encode(text.read_text(), add_special_tokens=False)
    return torch.tensor(ids[: len(ids) // CONTEXT * CONTEXT]).view(-1, CONTEXT)


def test_the_first_layer_sees_the_normalised_embedding(make_family: Make, text: Path, tmp_path: Path) -> None:
    model = make_family(tmp_path / "m", "llama")
    values = compute_imatrix(resolve(tmp_path / "m"), text, context=CONTEXT).values
    embedded = model.model.embed_tokens(pieces(tmp_path / "m", text))
    expected = model.model.layers[0].input_layernorm(embedded).square().flatten(0, 1).mean(0)
    for name in ("attn_q", "attn_k", "attn_v"):
        # The model runs in bfloat16, its own dtype.
        assert torch.allclose(values[f"blk.0.{name}.weight"], expected, rtol=0.02)
    layers = {f"blk.{layer}.{name}.weight" for layer in range(3) for name in ("attn_output", "ffn_up", "ffn_down")}
    assert layers <= set(values)
    assert not {"output.weight", "token_embd.weight"} & set(values)


def test_pieces_begin_as_the_tokenizer_begins_a_text(make_family: Make, text: Path, tmp_path: Path) -> None:
    make_family(tmp_path / "m", "llama")
    plain = compute_imatrix(resolve(tmp_path / "m"), text, context=CONTEXT, chunks=1)
    config = tmp_path / "m" / "tokenizer_config.json"
    config.write_text(config.read_text().replace("{", '{"add_bos_token": true, ', 1))
    with_bos = compute_imatrix(resolve(tmp_path / "m"), text, context=CONTEXT, chunks=1)
    assert not torch.equal(plain.values["blk.0.attn_q.weight"], with_bos.values["blk.0.attn_q.weight"])


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_each_expert_counts_what_it_was_chosen_for(family: str, make_family: Make, text: Path, tmp_path: Path) -> None:
    model = make_family(tmp_path / "m", family)
    config = tmp_path / "m" / "config.json"
    # In bfloat16 a token may go to another of two experts that are nearly as good.
    config.write_text(config.read_text().replace("bfloat16", "float32"))
    values = compute_imatrix(resolve(tmp_path / "m"), text, context=CONTEXT, chunks=2).values
    seen: list[list[torch.Tensor]] = [[], [], [], []]
    inner: list[list[torch.Tensor]] = [[], [], [], []]
    block = model.model.layers[0].mlp

    def look(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        states = inputs[0].view(-1, inputs[0].shape[-1])
        chosen = block.gate(states)[0].topk(2, dim=-1).indices
        for token, experts in zip(states, chosen, strict=True):
            for expert in experts.tolist():
                weight = block.experts.gate_up_proj[expert].view(2, 32 if family != "mixtral" else 96, -1)
                seen[expert].append(token.square())
                inner[expert].append((torch.nn.functional.silu(weight[0] @ token) * (weight[1] @ token)).square())

    block.register_forward_pre_hook(look)
    with torch.no_grad():
        for ids in pieces(tmp_path / "m", text)[:2]:
            model(ids[None])
    for kind, rows in (("gate", seen), ("up", seen), ("down", inner)):
        found = values[f"blk.0.ffn_{kind}_exps.weight"]
        for expert in range(4):
            expected = torch.stack(rows[expert]).mean(0) if rows[expert] else torch.ones(found.shape[1])
            assert torch.allclose(found[expert], expected, rtol=1e-4, atol=1e-7), (kind, expert)


def test_an_unmerged_adapter_is_part_of_the_model(
    make_llama: Make, make_lora: Make, make_tokenizer: Make, text: Path
) -> None:
    base = make_llama(vocab_size=400)
    make_tokenizer(base)
    adapter = make_lora(base)
    tuned, plain = (compute_imatrix(resolve(source), text, context=CONTEXT, chunks=1) for source in (adapter, base))
    assert tuned.values.keys() == plain.values.keys()
    assert torch.equal(tuned.values["blk.0.attn_q.weight"], plain.values["blk.0.attn_q.weight"])
    assert not torch.equal(tuned.values["blk.1.attn_q.weight"], plain.values["blk.1.attn_q.weight"])


def test_types_of_two_bits_come_out_usable_with_it(
    make_family: Make, make_gguf: Make, llama_cpp_file: Make, text: Path, tmp_path: Path
) -> None:
    home = tmp_path / "m"
    make_family(home, "llama", hidden_size=256, intermediate_size=256, head_dim=64)
    imatrix = compute_imatrix(resolve(home), text, context=CONTEXT, chunks=2)
    made = make_gguf(home, home, "iq2_xs", imatrix=imatrix)
    assert "IQ2_XS" in {tensor.tensor_type.name for tensor in GGUFReader(made).tensors}
    assert llama_cpp_file(made).logits([1, 5, 9]).isfinite().all()


@pytest.mark.parametrize(
    "values",
    [torch.ones(65), -torch.ones(64), torch.full((64,), float("nan")), torch.full((64,), 1e30), torch.ones(1, 64)],
)
def test_a_matrix_that_does_not_fit_is_refused(
    values: torch.Tensor, make_family: Make, make_gguf: Make, tmp_path: Path
) -> None:
    make_family(tmp_path, "llama")
    with pytest.raises(InputError, match="not as the model has it"):
        make_gguf(tmp_path, tmp_path, "q4_0", imatrix=Imatrix({"blk.0.attn_q.weight": values}))


def test_what_cannot_be_computed_is_refused(make_family: Make, text: Path, tmp_path: Path) -> None:
    make_family(tmp_path / "m", "llama")
    source = resolve(tmp_path / "m")
    with pytest.raises(InputError, match="less than the 4096 tokens"):
        compute_imatrix(source, text, context=4096)
    with pytest.raises(InputError, match="UTF-8"):
        compute_imatrix(source, tmp_path / "m" / "model.safetensors")
    with pytest.raises(InputError, match="UTF-8"):
        compute_imatrix(source, tmp_path / "absent.txt")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"\x08" + bytes(15))
    with pytest.raises(SourceError, match="does not load it"):
        compute_imatrix(source, text, context=CONTEXT)
    make_family(tmp_path / "experts", "gpt_oss")
    with pytest.raises(SpecError, match="gpt-oss's experts"):
        compute_imatrix(resolve(tmp_path / "experts"), text, context=CONTEXT)
