"""Texts to token ids and back, through the ``tokenizers`` library."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from tuneserve.errors import RequestError, TextError
from tuneserve.text._backend import BackendError, guarded
from tuneserve.text._files import read_bytes, read_object, special_tokens

TOKENIZER_FILE = "tokenizer.json"
_MAX_BYTES = 100_000_000
# The largest have a quarter of a million tokens; masks of grammars have a place for each.
_MAX_VOCABULARY = 1 << 22
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Tokenizer:
    """An opened tokenizer.

    ``vocab_size`` is the highest id plus one. ``end_token_ids`` are all that the model's files name as the end of an
    answer. ``byte_ids`` are tokens of one byte that the decoder joins into characters. ``prefix_ids`` are put before a
    text when the configuration asks for a BOS that the tokenizer does not add.
    """

    backend: tokenizers.Tokenizer
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    end_token_ids: frozenset[int]
    special_ids: frozenset[int]
    byte_ids: frozenset[int]
    prefix_ids: tuple[int, ...]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of ``text``; special tokens written in it become their ids.

        A rendered chat template holds its BOS already and is encoded without ``add_special_tokens``.

        Raises:
            RequestError: the text is not valid Unicode, or the tokenizer has no tokens for it.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError("the text has lone surrogates in it, which are not Unicode; remove them.") from None
        try:
            ids: list[int] = guarded(lambda: self.backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except BackendError as error:
            raise RequestError(f"the tokenizer cannot encode this text ({error}); change it.") from None
        return [*self.prefix_ids, *ids] if add_special_tokens else ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ``ids``; ids outside the vocabulary have none."""
        text: str = self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return text


def open_tokenizer(directory: Path, model_dir: Path | None = None) -> Tokenizer:
    """Open the tokenizer in ``directory``; what ends an answer is also looked up in ``model_dir``.

    Raises:
        TextError: there is no ``tokenizer.json``, or a file is malformed.
    """
    path = directory / TOKENIZER_FILE
    settings = read_object(directory / "tokenizer_config.json")
    names = special_tokens(directory)
    backend = _backend(path)
    try:
        guarded(lambda: _add_configured(backend, settings, names))
        prefix_ids = guarded(lambda: _missing_bos(backend, names.get("bos_token"), settings.get("add_bos_token")))
    except BackendError as error:
        raise TextError(
            f"the tokenizer in {directory} is not usable ({error}); download or save its files again."
        ) from None
    ends = {index for place in (directory, model_dir or directory) for index in _end_ids(place)}
    if "eos_token" in names and (eos_id := backend.token_to_id(names["eos_token"])) is not None:
        ends.add(eos_id)
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    size = max(vocabulary.values(), default=-1) + 1
    if size > _MAX_VOCABULARY:
        raise TextError(f"{path} has a token of the id {size - 1}, more than any model has; download or save it again.")
    return Tokenizer(
        backend=backend,
        vocab_size=size,
        bos_token=names.get("bos_token"),
        eos_token=names.get("eos_token"),
        end_token_ids=frozenset(ends),
        special_ids=frozenset(index for index, token in backend.get_added_tokens_decoder().items() if token.special),
        byte_ids=_byte_ids(backend, vocabulary),
        prefix_ids=prefix_ids,
    )


def _backend(path: Path) -> tokenizers.Tokenizer:
    data = read_bytes(path, _MAX_BYTES)
    if data is None:
        found = "only a tokenizer.model" if (path.parent / "tokenizer.model").exists() else f"no {TOKENIZER_FILE}"
        raise TextError(
            f"{path.parent} has {found}; copy {TOKENIZER_FILE} from the base model, or save the tokenizer there with "
            "Transformers."
        )
    try:
        backend = guarded(lambda: tokenizers.Tokenizer.from_buffer(data))
    except BackendError as error:
        raise TextError(f"{path} is not a usable tokenizer ({error}); download or save it again.") from None
    # Training leaves these in the file at times; neither belongs to inference.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _add_configured(backend: tokenizers.Tokenizer, settings: dict[str, Any], names: dict[str, str]) -> None:
    """Add the tokens that only the configuration has, and mark its special ones as such, as Transformers does."""
    listed = settings.get("added_tokens_decoder")
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for _, fields in sorted(listed.items(), key=lambda item: int(item[0])) if isinstance(listed, dict) else ():
        if fields["content"] not in known:
            backend.add_tokens([tokenizers.AddedToken(**fields)])
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    contents = [token.get("content") if isinstance(token, dict) else token for token in extra]
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    wanted = dict.fromkeys(text for text in (*names.values(), *contents) if isinstance(text, str) and text)
    backend.add_special_tokens([text for text in wanted if text not in special])


def _end_ids(directory: Path) -> Iterator[int]:
    for name in ("generation_config.json", "config.json"):
        value: Any = read_object(directory / name).get("eos_token_id")
        for index in value if isinstance(value, list) else [value]:
            if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < _MAX_VOCABULARY:
                yield index


def _byte_ids(backend: tokenizers.Tokenizer, vocabulary: dict[str, int]) -> frozenset[int]:
    if backend.decoder is None or b'"ByteFallback"' not in backend.decoder.__getstate__():
        return frozenset()
    return frozenset(index for token, index in vocabulary.items() if _BYTE_TOKEN.fullmatch(token))


def _missing_bos(backend: tokenizers.Tokenizer, bos: str | None, wanted: object) -> tuple[int, ...]:
    if wanted is not True or bos is None:
        return ()
    index = backend.token_to_id(bos)
    return () if index is None or index in backend.encode("", add_special_tokens=True).ids else (index,)
