"""The user's calibration text as token ids, so that neither the tokenizer nor the template is run anywhere else."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneserve.errors import InputError, RequestError
from tuneserve.sources import ResolvedSource, read_config
from tuneserve.text import Tokenizer, open_chat_template, open_tokenizer

_MAX_BYTES = 200_000_000
# Fewer say too little about the model's activations for scales to be taken from.
MIN_SAMPLES = 16
_BLANK_LINE = re.compile(r"\n[ \t]*\n")

_Render = Callable[[Any], str]


@dataclass(frozen=True)
class CalibrationText:
    """Samples of token ids, each at most ``sequence_length`` long, from the file ``path`` with hash ``sha256``."""

    path: Path
    sha256: str
    sequence_length: int
    samples: tuple[tuple[int, ...], ...]


def read_calibration_text(path: Path, source: ResolvedSource, *, samples: int, sequence_length: int) -> CalibrationText:
    """Read up to ``samples`` samples, evenly spread over the file.

    A ``.txt`` file has blank lines between samples. Each line of a ``.jsonl`` file is an object with ``text``, or with
    ``messages``, which are rendered with the source's own chat template. Samples are cut at ``sequence_length`` tokens,
    or at the model's own limit where that is less.

    Raises:
        InputError: the file is not such a text, is larger than 200 MB, or has fewer than 16 samples; or the source has
            no usable tokenizer, or no chat template for messages.
    """
    if samples < MIN_SAMPLES or sequence_length < 2:
        raise InputError(
            f"{samples} samples of {sequence_length} tokens are too few to calibrate on; ask for {MIN_SAMPLES} samples "
            "or more, of hundreds of tokens."
        )
    data, text = _read(path)
    records = _records(path, text)
    if len(records) < MIN_SAMPLES:
        between = "lines" if path.suffix == ".jsonl" else "texts with blank lines between them"
        raise InputError(
            f"{path} has {len(records)} samples, too few to calibrate on; give {MIN_SAMPLES} {between} or more, better "
            "hundreds."
        )
    chosen = (
        [records[index * len(records) // samples] for index in range(samples)] if len(records) > samples else records
    )
    length = min(sequence_length, _position_limit(source) or sequence_length)
    encode = _encoder(path, source)
    encoded = tuple(tuple(encode(number, record)[:length]) for number, record in chosen)
    if short := [number for (number, _), ids in zip(chosen, encoded, strict=True) if len(ids) < 2]:
        raise InputError(f"sample {short[0]} of {path} has no two tokens; leave it out, or join it with another.")
    return CalibrationText(path, hashlib.sha256(data).hexdigest(), length, encoded)


def _read(path: Path) -> tuple[bytes, str]:
    if path.suffix not in (".txt", ".jsonl"):
        raise InputError(f"{path} is neither .txt nor .jsonl; save the calibration text as one of these.")
    if not path.is_file():
        raise InputError(f"there is no file {path}; give --calibrate-with the path of your own text.")
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise InputError(f"{path} is larger than {_MAX_BYTES:,} bytes; a few hundred samples of it are enough.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError(f"{path} is not text in UTF-8; save it as that.")
    return data, text.replace("\r\n", "\n")


def _records(path: Path, text: str) -> list[tuple[int, str]]:
    """Return each sample with the number that its place in the file has, from 1."""
    parts = text.split("\n") if path.suffix == ".jsonl" else _BLANK_LINE.split(text)
    return [(number, part) for number, part in enumerate(parts, start=1) if part.strip()]


def _encoder(path: Path, source: ResolvedSource) -> Callable[[int, str], list[int]]:
    tokenizer = open_tokenizer(source.tokenizer_dir, source.model_dir)
    render = _renderer(source)

    def encode(number: int, record: str) -> list[int]:
        try:
            if path.suffix == ".txt":
                return tokenizer.encode(record.strip(), add_special_tokens=True)
            return _encode_json(tokenizer, render, record)
        except (RequestError, _MalformedError) as error:
            raise InputError(f"sample {number} of {path} cannot be used: {error}") from None

    return encode


class _MalformedError(Exception):
    """A line is no sample; its message says why."""


def _encode_json(tokenizer: Tokenizer, render: _Render, line: str) -> list[int]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if isinstance(record, dict) and isinstance(record.get("text"), str):
        return tokenizer.encode(record["text"], add_special_tokens=True)
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _MalformedError('a line must be a JSON object with "text", or with "messages" that are objects.')
    return tokenizer.encode(render(messages), add_special_tokens=False)


def _renderer(source: ResolvedSource) -> _Render:
    template = open_chat_template(source.tokenizer_dir, source.model_dir)

    def render(messages: Any) -> str:
        if template is None:
            raise _MalformedError('the model has no chat template to render messages with; give "text" instead.')
        return template.render(messages, add_generation_prompt=False)

    return render


def _position_limit(source: ResolvedSource) -> int | None:
    config = read_config(source.model_dir / "config.json")
    limit = config.get("max_position_embeddings", config.get("n_positions"))
    return limit if isinstance(limit, int) and limit > 1 else None
