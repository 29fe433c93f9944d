"""Transformers' generation settings, from a model's files and from a call, as the engine's sampling parameters."""

from pathlib import Path
from typing import Any

import msgspec

from tuneserve.engines.contract import SamplingParams
from tuneserve.errors import InputError, RequestError
from tuneserve.sources import read_config

_DEFAULT_NEW_TOKENS = 20


class GenerationSettings(msgspec.Struct, frozen=True):
    """The part of Transformers' ``GenerationConfig`` that the engine has, with the same names and defaults."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0
    max_new_tokens: int | None = None
    max_length: int | None = None
    pad_token_id: int | None = None

    def with_given(self, **given: Any) -> "GenerationSettings":
        """Return the settings of a call, of which None means not given, over these.

        Raises:
            RequestError: a value is of the wrong type.
        """
        given = {name: value for name, value in given.items() if value is not None}
        if "max_length" in given:
            # A limit in the call is not to be undone by the other kind of limit in a file.
            given.setdefault("max_new_tokens", None)
        try:
            return msgspec.convert(msgspec.structs.asdict(self) | given, GenerationSettings)
        except msgspec.ValidationError as error:
            raise RequestError(f"generate was given a value of the wrong type ({error}); correct it.") from None

    def room(self, width: int) -> int:
        """Return how many tokens may follow ``width``.

        Raises:
            RequestError: there is no room for one.
        """
        room = self.max_new_tokens
        if room is None:
            room = _DEFAULT_NEW_TOKENS if self.max_length is None else self.max_length - width
        if room < 1:
            raise RequestError(f"there is no room for a new token after {width}; raise max_new_tokens or max_length.")
        return room

    def params(self, room: int, ends: tuple[int, ...], seed: int) -> SamplingParams:
        """Return the engine's parameters for one sequence.

        Raises:
            RequestError: a value is out of its range.
        """
        params = SamplingParams(
            max_tokens=room,
            min_tokens=self.min_new_tokens,
            temperature=0.0,
            repetition_penalty=self.repetition_penalty,
            stop_token_ids=ends,
        )
        if self.do_sample:
            if not self.temperature > 0:
                raise RequestError("temperature must be above 0 when do_sample is true; pass do_sample=False.")
            params = msgspec.structs.replace(
                params, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, min_p=self.min_p, seed=seed
            )
        params.check()
        return params


def read_generation_settings(model_dir: Path) -> GenerationSettings:
    """Read ``generation_config.json``, or, as Transformers does, ``config.json`` where that file is missing.

    Raises:
        InputError: the file is malformed, or a value is of the wrong type.
    """
    path = model_dir / "generation_config.json"
    path = path if path.is_file() else model_dir / "config.json"
    given = {name: value for name, value in read_config(path).items() if value is not None}
    try:
        return msgspec.convert(given, GenerationSettings)
    except msgspec.ValidationError as error:
        raise InputError(f"{path} has no usable generation settings ({error}); correct it.") from None
