"""Protects: ids as in Transformers, streamed text equal to whole text, stop strings whatever the pieces."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneserve.errors import RequestError, TextError
from tuneserve.text import Detokenizer, StopStrings, Tokenizer, open_tokenizer

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "naïve 🤷🏽‍♀️ 中文 \t\n x",
    "<|im_start|>user\nhi<|im_end|>",
    "12 345",
    "👩‍👩‍👧‍👦" * 3,
]


@pytest.fixture(scope="session")
def tokenizer(demo_base: Path) -> Tokenizer:
    return open_tokenizer(demo_base)


def test_ids_are_those_of_transformers(tokenizer: Tokenizer, demo_base: Path) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(demo_base)
    for text in TEXTS:
        for special in (True, False):
            assert tokenizer.encode(text, add_special_tokens=special) == reference.encode(
                text, add_special_tokens=special
            )
    assert reference.eos_token_id in tokenizer.end_token_ids
    assert tokenizer.vocab_size == len(reference)


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_text_is_the_whole_text(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push([index]) for index in ids]
    assert "".join(pieces) + detokenizer.finish() == tokenizer.decode(ids)
    assert not any("�" in piece for piece in pieces)


@settings(deadline=None)
@given(st.lists(st.integers(0, 49151), max_size=12), st.data())
def test_any_ids_in_any_pieces_make_the_whole_text(ids: list[int], data: st.DataObject) -> None:
    detokenizer = Detokenizer(_shared(Path.home()))
    text, start = "", 0
    while start < len(ids):
        end = data.draw(st.integers(start + 1, len(ids)))
        text += detokenizer.push(ids[start:end])
        start = end
    assert text + detokenizer.finish() == _shared(Path.home()).decode(ids)


def _shared(_: Path, _cache: list[Tokenizer] = []) -> Tokenizer:  # noqa: B006
    from tuneserve.sources import resolve

    if not _cache:
        _cache.append(open_tokenizer(resolve("demo").tokenizer_dir))
    return _cache[0]


def test_a_leading_space_survives_in_a_metaspace_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    backend = Backend(models.WordLevel({"▁a": 0, "▁b": 1, "c": 2, "?": 3}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_tokenizer(tmp_path)
    ids = [4, 0, 4, 1, 2, 1, 0]
    detokenizer = Detokenizer(tokenizer)
    assert "".join(detokenizer.push([index]) for index in ids) == tokenizer.decode(ids) == "a bc b a"


@given(st.text("abc", max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_strings_do_not_depend_on_the_pieces(text: str, stops: list[str], data: st.DataObject) -> None:
    def cut(pieces: list[str]) -> tuple[str, str | None]:
        watcher, shown = StopStrings(stops), ""
        for piece in pieces:
            safe, stop = watcher.push(piece)
            shown += safe
            if stop is not None:
                return shown, stop
        return shown + watcher.finish(), None

    sizes = data.draw(st.lists(st.integers(1, 5), min_size=len(text), max_size=len(text)))
    pieces, start = [], 0
    for size in sizes:
        pieces.append(text[start : start + size])
        start += size
    shown, stop = cut(pieces)
    assert (shown, stop) == cut([text])
    assert (stop is None) == (not any(s in text for s in stops))
    assert text.startswith(shown)
    assert not any(s in shown for s in stops)


def test_an_end_that_no_vocabulary_has_is_left_out(demo_base: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((demo_base / "tokenizer.json").read_bytes())
    for ends in ([2, 2**31], 2**64, [2, -1, True, "2"]):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        assert open_tokenizer(tmp_path).end_token_ids <= {2}


def test_an_id_that_no_model_has_is_refused(tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {"a": 2**32 - 1}, "merges": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    with pytest.raises(TextError, match="the id 4294967295, more than any model has"):
        open_tokenizer(tmp_path)


def test_lone_surrogates_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="surrogates"):
        tokenizer.encode("a\ud800", add_special_tokens=False)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1", b'{"model": 3}', b'{"version":"1.0","model":{"type":"X"}}'])
def test_a_broken_tokenizer_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TextError, match=r"tokenizer\.json"):
        open_tokenizer(tmp_path)


def test_a_missing_tokenizer_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"copy tokenizer\.json from the base"):
        open_tokenizer(tmp_path)


def test_truncation_and_padding_left_by_training_do_not_apply(demo_base: Path, tmp_path: Path) -> None:
    settings = json.loads((demo_base / "tokenizer.json").read_text())
    settings["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    assert len(open_tokenizer(tmp_path).encode("a b c d e f g h", add_special_tokens=False)) == 8
