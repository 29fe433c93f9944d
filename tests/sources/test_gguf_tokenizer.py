"""Tokenizers made from GGUF metadata divide text as llama.cpp does from the same file."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers

from tuneserve.checkpoint import open_gguf
from tuneserve.errors import SourceError
from tuneserve.sources import _gguf_bpe
from tuneserve.sources._gguf_tokenizer import write_tokenizer_files

TEXT = (
    "Hello, World! I'll say: it's 12345 o'clock;  don't\tSHOUT'S\n\n  indented\r\n code_block(x=10**9)  \n"
    "été 東京は大きい 안녕하세요 123 ½ e=mc² 🙂🚀 ... !!! <b>bold</b> HTTPServer camelCase \u3000end   "
)
MERGES = 4000


@pytest.fixture(scope="session")
def vocabulary(demo_base: Path) -> tuple[list[str], list[str]]:
    """Return tokens and merges of the demo model's tokenizer, the most frequent ones."""
    model = json.loads((demo_base / "tokenizer.json").read_text())["model"]
    merges = [tuple(merge) for merge in model["merges"][:MERGES]]
    used = {part for merge in merges for part in (*merge, "".join(merge))}
    tokens = [token for token in model["vocab"] if len(token) == 1 or token in used]
    return [*tokens, "<|end|>", "<tool>"], [" ".join(merge) for merge in merges]


def _write(path: Path, model: str, pre: str, tokens: list[str], types: list[int], **more: Any) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name in ("context_length", "embedding_length", "feed_forward_length", "block_count"):
        writer.add_uint32(f"llama.{name}", 64)
    writer.add_uint32("llama.attention.head_count", 4)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name, value in more.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def _ours(path: Path, directory: Path) -> tokenizers.Tokenizer:
    directory.mkdir()
    write_tokenizer_files(open_gguf(path), directory, 64)
    return tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))


@pytest.fixture
def theirs() -> Callable[..., list[list[int]]]:
    """Return what tokenizes texts with llama.cpp."""
    import llama_cpp

    def tokenize(path: Path, texts: list[str], *, add_bos: bool = False) -> list[list[int]]:
        model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        try:
            return [model.tokenize(text.encode(), add_bos=add_bos, special=True) for text in texts]
        finally:
            model.close()

    return tokenize


@pytest.mark.parametrize("pre", sorted(_gguf_bpe._KINDS))
def test_every_way_of_splitting_is_llama_cpps(
    tmp_path: Path, vocabulary: tuple[list[str], list[str]], theirs: Callable[..., Any], pre: str
) -> None:
    tokens, merges = vocabulary
    types = [1] * (len(tokens) - 2) + [3, 4]
    more = {"token_merges": merges, "bos_token_id": 0, "eos_token_id": 1}
    path = _write(tmp_path / "m.gguf", "gpt2", pre, tokens, types, **more)
    ours = _ours(path, tmp_path / "made")
    texts = [TEXT, "x<|end|> y<tool>z", *TEXT.split()]
    assert [ours.encode(text, add_special_tokens=False).ids for text in texts] == theirs(path, texts)
    assert ours.decode(ours.encode(TEXT, add_special_tokens=False).ids) == TEXT
    (with_ends,) = theirs(path, ["a"], add_bos=True)
    assert ours.encode("a").ids == with_ends


def _pieces() -> tuple[list[str], list[int], list[float]]:
    words = ["▁t", "he", "▁the", "in", "▁in", "er", "ing", "▁a", "st", "▁st", "▁▁", "▁▁▁▁", "string", "▁string"]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyzé", "str", "s"][:-1]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *letters, "<|user|>"]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(words) + len(letters)), 3]
    scores = [0.0] * 259 + [-float(i) for i in range(len(words))] + [-100.0 - i for i in range(len(letters))] + [0.0]
    return tokens, types, scores


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_merges_by_score(tmp_path: Path, theirs: Callable[..., Any], prefix: bool) -> None:
    tokens, types, scores = _pieces()
    more = {"token_scores": scores, "add_space_prefix": prefix}
    path = _write(tmp_path / "m.gguf", "llama", "default", tokens, types, **more)
    ours = _ours(path, tmp_path / "made")
    generator = random.Random(0)
    texts = ["".join(generator.choices("  thesinrga東é\n", k=40)) for _ in range(200)]
    texts += ["<|user|>the string<|user|> in", "the   string", " ", "é東"]
    assert [ours.encode(text, add_special_tokens=False).ids for text in texts] == theirs(path, texts)
    assert all(ours.decode(ours.encode(text).ids) == text for text in texts if "<" not in text)
    assert [ours.encode("the").ids] == theirs(path, ["the"], add_bos=True)
    config = json.loads((tmp_path / "made" / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"], config["unk_token"]) == ("<s>", "</s>", "<unk>")


def test_special_tokens_of_phi_3_swallow_the_space_behind_them(tmp_path: Path, theirs: Callable[..., Any]) -> None:
    tokens, types, scores = _pieces()
    tokens, types, scores = [*tokens, "<|endoftext|>"], [*types, 3], [*scores, 0.0]
    path = _write(tmp_path / "m.gguf", "llama", "default", tokens, types, token_scores=scores, name="Phi-3 mini")
    texts = ["<|user|>\n the", "<s> the", "</s> the"]
    ours = _ours(path, tmp_path / "made")
    assert [ours.encode(text, add_special_tokens=False).ids for text in texts] == theirs(path, texts)


def test_templates_come_along(tmp_path: Path) -> None:
    tokens, types, scores = _pieces()
    templates = [{"name": "default", "template": "{{ a }}"}, {"name": "tool_use", "template": "{{ b }}"}]
    path = _write(tmp_path / "m.gguf", "llama", "default", tokens, types, token_scores=scores, chat_template=templates)
    _ours(path, tmp_path / "made")
    assert (tmp_path / "made" / "chat_template.jinja").read_text() == "{{ a }}"
    assert (tmp_path / "made" / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ b }}"


@pytest.mark.parametrize(
    ("model", "pre", "changes", "message"),
    [
        ("bert", "default", {}, "of the kind 'bert'"),
        ("gpt2", "sorcery", {"token_merges": ["a b"]}, "by 'sorcery'"),
        ("gpt2", "smollm", {}, "malformed merges"),
        ("gpt2", "smollm", {"token_merges": ["ab"]}, "malformed merge"),
        ("gpt2", "smollm", {"token_merges": ["a nonsense"]}, "malformed merges"),
        ("llama", "default", {}, "malformed scores"),
        ("llama", "default", {"token_scores": [1.0]}, "malformed scores"),
        ("llama", "default", {"bos_token_id": 10_000}, "malformed token ids"),
    ],
)
def test_what_is_no_tokenizer_is_refused(
    tmp_path: Path, model: str, pre: str, changes: dict[str, Any], message: str
) -> None:
    tokens, types, _ = _pieces()
    path = _write(tmp_path / "m.gguf", model, pre, tokens, types, **changes)
    with pytest.raises(SourceError, match=message):
        _ours(path, tmp_path / "made")


def test_tokens_of_absurd_length_are_refused_in_time(tmp_path: Path) -> None:
    tokens, types, scores = _pieces()
    tokens, types, scores = [*tokens, "a" * 1_000_000], [*types, 1], [*scores, 0.0]
    path = _write(tmp_path / "m.gguf", "llama", "default", tokens, types, token_scores=scores)
    with pytest.raises(SourceError, match="a token of 1000000 characters"):
        _ours(path, tmp_path / "made")


def test_tokens_twice_are_refused(tmp_path: Path) -> None:
    tokens, types, scores = _pieces()
    path = _write(tmp_path / "m.gguf", "llama", "default", [*tokens, "a"], [*types, 1], token_scores=[*scores, 0.0])
    with pytest.raises(SourceError, match="malformed tokens"):
        _ours(path, tmp_path / "made")
