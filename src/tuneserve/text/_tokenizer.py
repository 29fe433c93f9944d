"""Texts to token ids and back, through the ``tokenizers`` library."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from tuneserve.errors import RequestError, TextError
from tuneserve.text._files import read_object, special_tokens

TOKENIZER_FILE = "tokenizer.json"
_MAX_BYTES = 100_000_000


@dataclass(frozen=True)
class Tokenizer:
    """An opened tokenizer.

    ``vocab_size`` is the highest id plus one. ``end_token_ids`` are all that the model's files name as the end of an
    answer. ``prefix_ids`` are put before a text when the configuration asks for a BOS that the tokenizer does not add.
    """

    backend: tokenizers.Tokenizer
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    end_token_ids: frozenset[int]
    special_ids: frozenset[int]
    prefix_ids: tuple[int, ...]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of ``text``; special tokens written in it become their ids.

        A rendered chat template holds its BOS already and is encoded without ``add_special_tokens``.

        Raises:
            RequestError: the text is not valid Unicode.
        """
        try:
            ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeEncodeError):
            raise RequestError("the text has lone surrogates in it, which are not Unicode; remove them.") from None
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
    backend = _backend(directory)
    names = special_tokens(directory)
    settings = read_object(directory / "tokenizer_config.json")
    ends = {index for place in (directory, model_dir or directory) for index in _end_ids(place)}
    eos_id = backend.token_to_id(names["eos_token"]) if "eos_token" in names else None
    if eos_id is not None:
        ends.add(eos_id)
    added = backend.get_added_tokens_decoder()
    return Tokenizer(
        backend=backend,
        vocab_size=max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1,
        bos_token=names.get("bos_token"),
        eos_token=names.get("eos_token"),
        end_token_ids=frozenset(ends),
        special_ids=frozenset(index for index, token in added.items() if token.special),
        prefix_ids=_missing_bos(backend, names.get("bos_token"), settings.get("add_bos_token")),
    )


def _backend(directory: Path) -> tokenizers.Tokenizer:
    path = directory / TOKENIZER_FILE
    if not path.is_file():
        raise TextError(
            f"{directory} has no {TOKENIZER_FILE}; copy it from the base model, or save the tokenizer there with "
            "Transformers."
        )
    if path.stat().st_size > _MAX_BYTES:
        raise TextError(f"{path} is larger than {_MAX_BYTES // 1_000_000} MB; download it again.")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    # The library raises plain Exception, and its panics derive from BaseException.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise TextError(f"{path} is not a usable tokenizer ({str(error)[:200]}); download or save it again.") from None
    # Training leaves these in the file at times; neither belongs to inference.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _end_ids(directory: Path) -> Iterator[int]:
    for name in ("generation_config.json", "config.json"):
        value: Any = read_object(directory / name).get("eos_token_id")
        for index in value if isinstance(value, list) else [value]:
            if isinstance(index, int) and not isinstance(index, bool) and index >= 0:
                yield index


def _missing_bos(backend: tokenizers.Tokenizer, bos: str | None, wanted: object) -> tuple[int, ...]:
    if wanted is not True or bos is None:
        return ()
    index = backend.token_to_id(bos)
    return () if index is None or index in backend.encode("", add_special_tokens=True).ids else (index,)
