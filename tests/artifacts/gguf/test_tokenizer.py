"""Protects: llama.cpp divides any text into the tokens that the model's own tokenizer makes, or the export refuses."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors, trainers

from tuneserve.artifacts.gguf import _pretokenizer as known
from tuneserve.artifacts.gguf._header import Value, lay_out
from tuneserve.artifacts.gguf._tokenizer import tokenizer_metadata
from tuneserve.errors import TextError

Make = Callable[..., Any]
ROWS = 900
NASTY = [
    *("Hello, world!", "  two  spaces\n\n\tand a tab\r\n", "don't DON'T we'LL 'tis I'D", "", " ", "      ", "\n"),
    *("12345678 3.14 ½ ①² ٣٤٥", "\n\n \n", "naïve café Übergrößen ſ İ ﬁ", "東京の天気 한국어 مرحبا हिन्दी"),
    *(
        "🚀 👨\u200d👩\u200d👧 🌫️",
        "\u200b\ufeff\u00a0\u3000x",
        "camelCase HTTPServer ABCdef",
        "x=1;if(x){return -1;}//--",
    ),
    *("a" * 70, "▁under ▁▁", "<|end|> <|begin|>x", "<tool>call</tool> <tool>", "<0x41>"),
]
random.seed(0)
ALPHABET = "abcXYZ  \n\t'0123.,!?éß漢字🚀<|>▁-_/\\\u00a0\u3000ा"
TEXTS = NASTY + ["".join(random.choices(ALPHABET, k=random.randint(1, 30))) for _ in range(150)]


def by_pattern(pattern: str, **how: Any) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), **(how or {"behavior": "isolated"}))
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


PRE_TOKENIZERS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "smaug-bpe": by_pattern(known._LLAMA3),
    "llama-bpe": by_pattern(known._CL100K, behavior="removed", invert=True),
    "qwen2": by_pattern(known._QWEN2),
    "qwen35": by_pattern(known._QWEN35),
    "tekken": by_pattern(known._TEKKEN),
    "gpt-4o": by_pattern(known._GPT4O),
}
IGNORES_MERGES = ("llama-bpe", "tekken")


def edit(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "tokenizer.json"
    definition = json.loads(path.read_text())
    change(definition)
    path.write_text(json.dumps(definition))


def opened(metadata: dict[str, Value], directory: Path, llama_cpp_file: Make) -> Any:
    """Return what llama.cpp makes of a file with a tokenizer and nothing else in it."""
    head, _, _ = lay_out({"general.architecture": "llama", **metadata}, [])
    path = directory / "vocabulary.gguf"
    path.write_bytes(head)
    return llama_cpp_file(path, vocab_only=True)


def differing(directory: Path, metadata: dict[str, Value], llama_cpp_file: Make) -> list[str]:
    theirs = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    ours = opened(metadata, directory, llama_cpp_file)
    return [text for text in TEXTS if ours.encode(text) != theirs.encode(text, add_special_tokens=False).ids]


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_each_byte_level_tokenizer_divides_text_the_same(
    name: str, make_tokenizer: Make, llama_cpp_file: Make, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer(tmp_path, PRE_TOKENIZERS[name])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    edit(tmp_path, lambda definition: definition["model"].update(ignore_merges=name in IGNORES_MERGES))
    metadata = tokenizer_metadata(tmp_path, "m", ROWS, {})
    assert metadata["tokenizer.ggml.pre"] == name
    assert differing(tmp_path, metadata, llama_cpp_file) == []


def write_sentencepiece(directory: Path, normalizer: Any, pre_tokenizer: Any = None, text: str | None = None) -> None:
    """Write a tokenizer as converters make them of SentencePiece models: every pair that makes a token is a merge."""
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    words = text or "the weather in Tokyo is the best, whether they like that or not; 12 then 123 there"
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False)
    trained.train_from_iterator(words.split(" "), trainer)
    vocabulary = trained.get_vocab()
    for run in range(2, 9):
        vocabulary.setdefault("▁" * run, len(vocabulary))
    pairs = [
        (vocabulary[text] if set(text) != {"▁"} else len(vocabulary), -cut, (text[:cut], text[cut:]))
        for text in vocabulary
        for cut in range(1, len(text))
        if text[:cut] in vocabulary and text[cut:] in vocabulary and text not in bytes_
    ]
    merges = [pair for _, _, pair in sorted(pairs)]
    made = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.normalizer, made.pre_tokenizer = normalizer, pre_tokenizer
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    directory.mkdir(parents=True, exist_ok=True)
    made.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    )


ESCAPE = normalizers.Replace(" ", "▁")
LLAMA2 = normalizers.Sequence([normalizers.Prepend("▁"), ESCAPE])
GEMMA_SPLIT = pre_tokenizers.Split(" ", behavior="merged_with_previous")


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "prefix"),
    [
        (LLAMA2, None, True),
        (ESCAPE, GEMMA_SPLIT, False),
        (None, pre_tokenizers.Metaspace(prepend_scheme="never", split=False), False),
    ],
)
def test_each_sentencepiece_tokenizer_divides_text_the_same(
    normalizer: Any, pre_tokenizer: Any, prefix: bool, llama_cpp_file: Make, tmp_path: Path
) -> None:
    write_sentencepiece(tmp_path, normalizer, pre_tokenizer)
    metadata = tokenizer_metadata(tmp_path, "m", ROWS, {})
    assert metadata["tokenizer.ggml.add_space_prefix"] is prefix
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert differing(tmp_path, metadata, llama_cpp_file) == []


def test_a_space_that_goes_only_before_the_first_text_goes_before_none_in_conversations(
    llama_cpp_file: Make, tmp_path: Path
) -> None:
    write_sentencepiece(tmp_path, None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False))
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = [text.strip() for text in TEXTS if text.strip()]
    ours = opened(tokenizer_metadata(tmp_path, "m", ROWS, {}), tmp_path, llama_cpp_file)
    assert [ours.encode(text) for text in texts if text[0] != "▁" and "<" not in text] == [
        theirs.encode(text, add_special_tokens=False).ids for text in texts if text[0] != "▁" and "<" not in text
    ]
    (tmp_path / "chat_template.jinja").write_text("<s>{{ messages[0].content }}")
    ours = opened(tokenizer_metadata(tmp_path, "m", ROWS, {}), tmp_path, llama_cpp_file)
    for text in (f"<s>{text}</s> {text}" for text in TEXTS):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


def test_bos_ends_and_padding_are_those_of_the_model(
    make_tokenizer: Make, llama_cpp_file: Make, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer(tmp_path, pad_token="<|end|>", add_bos_token=True)
    tokenizer.add_special_tokens(["<stop>", "<|eot_id|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    stop, eot = tokenizer.token_to_id("<stop>"), tokenizer.token_to_id("<|eot_id|>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, eot, stop]}))
    metadata = tokenizer_metadata(tmp_path, "m", ROWS, {})
    ids = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items() if key.endswith("token_id")}
    assert ids == {
        "bos_token_id": 1, "eos_token_id": 0, "eot_token_id": stop, "eom_token_id": eot, "padding_token_id": 0
    }  # fmt: skip
    ours = opened(metadata, tmp_path, llama_cpp_file)
    assert ours.encode("a", add_special=True) == [1, *ours.encode("a")]
    assert [token for token in range(tokenizer.get_vocab_size()) if ours.is_end(token)] == sorted([0, stop, eot])


def test_more_ends_than_a_file_holds_are_refused(make_tokenizer: Make, tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    with pytest.raises(TextError, match="5 tokens that end an answer"):
        tokenizer_metadata(tmp_path, "m", ROWS, {"eos_token_id": [0, 5, 6, 7, 8]})


def test_a_tokenizer_without_an_end_is_refused(make_tokenizer: Make, tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(TextError, match="which token ends an answer"):
        tokenizer_metadata(tmp_path, "m", ROWS, {})


def test_tokens_have_their_kinds_and_pad_the_embedding(make_tokenizer: Make, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("[PAD395]", normalized=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    metadata = tokenizer_metadata(tmp_path, "m", ROWS, {})
    texts, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert isinstance(texts, list)
    assert isinstance(kinds, list)
    assert len(texts) == len(kinds) == len(set(texts)) == ROWS
    assert (kinds[0], kinds[5], kinds[texts.index("<tool>")], kinds[size]) == (3, 1, 4, 5)
    fewer = tokenizer_metadata(tmp_path, "m", size - 1, {})["tokenizer.ggml.tokens"]
    assert isinstance(fewer, list)
    assert fewer[-1] == "<tool>"


def test_the_chat_templates_are_the_models_own(make_tokenizer: Make, tmp_path: Path) -> None:
    templates = [{"name": "default", "template": "A{{ messages }}"}, {"name": "tool_use", "template": "B"}]
    make_tokenizer(tmp_path, chat_template=templates)
    metadata = tokenizer_metadata(tmp_path, "m", ROWS, {})
    assert metadata["tokenizer.chat_template"] == "A{{ messages }}"
    assert metadata["tokenizer.chat_template.tool_use"] == "B"


def test_a_template_of_100_mb_is_refused_unread(make_tokenizer: Make, tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    with (tmp_path / "chat_template.jinja").open("wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(TextError, match="more than any model needs"):
        tokenizer_metadata(tmp_path, "m", ROWS, {})


@pytest.mark.parametrize("name", ["my-phi3-tune", "Phi-3.5-mini"])
def test_the_name_says_phi_3_only_where_llama_cpp_shall_strip_spaces(
    name: str, make_tokenizer: Make, llama_cpp_file: Make, tmp_path: Path
) -> None:
    make_tokenizer(tmp_path)
    metadata = tokenizer_metadata(tmp_path, name, ROWS, {})
    assert "phi-3" not in str(metadata["general.name"]).lower()
    assert opened(metadata, tmp_path, llama_cpp_file).encode("a") == [metadata["tokenizer.ggml.tokens"].index("a")]  # type: ignore[union-attr]
    write_sentencepiece(tmp_path, LLAMA2)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|endoftext|>", AddedToken("<|user|>", rstrip=True, normalized=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    metadata = tokenizer_metadata(tmp_path, "tuned", ROWS, {})
    assert metadata["general.name"] == "tuned (Phi-3)"
    text = "<|user|>\n\nHello <|user|>  x"
    expected = tokenizer.encode(text, add_special_tokens=False).ids
    assert opened(metadata, tmp_path, llama_cpp_file).encode(text) == expected


def add_nul(definition: dict[str, Any]) -> None:
    definition["added_tokens"].append({**definition["added_tokens"][0], "id": 600, "content": "a\0b"})


def add_two_tokens(definition: dict[str, Any]) -> None:
    single = [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}] * 2 + [{"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<|end|>": {"id": "<|end|>", "ids": [0], "tokens": ["<|end|>"]}}
    definition["post_processor"] = {
        "type": "TemplateProcessing", "pair": [], "single": single, "special_tokens": special
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: d.update(normalizer={"type": "Lowercase"}), "Lowercase"),
        (lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
        (lambda d: d.update(pre_tokenizer=None), "nothing"),
        (lambda d: d["pre_tokenizer"].update(add_prefix_space=True), "ByteLevel with these settings"),
        (lambda d: d["model"].update(merges=[]), "no merges"),
        (lambda d: d["model"].update(end_of_word_suffix="</w>"), "kind"),
        (add_nul, "NUL"),
        (lambda d: d["model"]["vocab"].update(far=10**6), "1000001 tokens"),
        (lambda d: d["model"]["vocab"].update(bad=-1), "not a usable tokenizer"),
        (add_two_tokens, "other tokens around"),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_tokenise_otherwise_is_refused(
    change: Callable[[dict[str, Any]], None], error: str, make_tokenizer: Make, tmp_path: Path
) -> None:
    make_tokenizer(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(TextError, match=error):
        tokenizer_metadata(tmp_path, "m", ROWS, {})


def test_whole_words_that_merging_does_not_find_must_be_looked_up_in_llama_cpp_too(
    make_tokenizer: Make, tmp_path: Path
) -> None:
    make_tokenizer(tmp_path, PRE_TOKENIZERS["qwen2"])
    edit(tmp_path, lambda definition: definition["model"].update(ignore_merges=True))
    assert tokenizer_metadata(tmp_path, "m", ROWS, {})["tokenizer.ggml.pre"] == "qwen2"
    edit(tmp_path, lambda definition: definition["model"]["vocab"].update(zqzq=500))
    with pytest.raises(TextError, match="whole words without merging"):
        tokenizer_metadata(tmp_path, "m", ROWS, {})


def rank_one_of_several_last(merges: list[list[str]]) -> None:
    made = ["".join(pair) for pair in merges]
    merges.append(merges.pop(next(i for i in range(len(made)) if made.count(made[i]) > 1)))


def rank_odd_runs_of_spaces_first(merges: list[list[str]]) -> None:
    """So that nine spaces end up as two and seven, where llama.cpp makes eight and one."""
    runs = [pair for pair in merges if {*"".join(pair)} == {"▁"}]
    merges[:] = [pair for pair in merges if pair not in runs]
    merges += sorted(runs, key=lambda pair: (pair != ["▁", "▁"], len("".join(pair)) % 2 == 0))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (rank_one_of_several_last, "ranked in between"),
        (rank_odd_runs_of_spaces_first, "ranked in between"),
        (lambda merges: merges.pop(), "never merges"),
    ],
)
def test_merges_that_are_not_sentencepieces_are_refused(
    change: Callable[[list[Any]], None], error: str, tmp_path: Path
) -> None:
    write_sentencepiece(tmp_path, LLAMA2)
    tokenizer_metadata(tmp_path, "m", ROWS, {})
    edit(tmp_path, lambda definition: change(definition["model"]["merges"]))
    with pytest.raises(TextError, match=error):
        tokenizer_metadata(tmp_path, "m", ROWS, {})


def test_a_unigram_tokenizer_is_refused(tmp_path: Path) -> None:
    tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, False)).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TextError, match="Unigram"):
        tokenizer_metadata(tmp_path, "m", ROWS, {"eos_token_id": 1})
