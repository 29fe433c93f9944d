"""Transformers' generation settings, from a model's files and from a call, as the engine's sampling parameters."""

from pathlib import Path
from typing import Any

import msgspec

from tuneserve.engines.contract import SamplingParams
from tuneserve.errors import InputError, RequestError
from tuneserve.native._beam import BeamRules
from tuneserve.native._offline import MOST_SAMPLES
from tuneserve.sources import read_config

_DEFAULT_NEW_TOKENS = 20


# What would change the output and is not done here, with the value at which it does not.
_UNSUPPORTED: dict[str, Any] = {
    "begin_suppress_tokens": None,
    "constraints": None,
    "diversity_penalty": 0.0,
    "dola_layers": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1.0,
    "max_time": None,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "penalty_alpha": 0.0,
    "return_dict_in_generate": None,
    "sequence_bias": None,
    "token_healing": None,
    "top_h": None,
    "watermarking_config": None,
}


class GenerationSettings(msgspec.Struct, frozen=True):
    """The part of Transformers' ``GenerationConfig`` that the engine has, with the same names and defaults.

    ``unsupported`` holds what was given beside that and would change the output; it is refused when it is used.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    bad_words_ids: list[list[int]] = []
    suppress_tokens: list[int] = []
    num_return_sequences: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    stop_strings: str | list[str] = []
    min_new_tokens: int = 0
    min_length: int = 0
    max_new_tokens: int | None = None
    max_length: int | None = None
    pad_token_id: int | None = None
    unsupported: dict[str, Any] = {}

    def with_given(self, **given: Any) -> "GenerationSettings":
        """Return the settings of a call over these; None means not given, as does False for a name that is not known.

        Raises:
            RequestError: a value is of the wrong type, or a name is not known.
        """
        names = set(self.__struct_fields__) - {"unsupported"} | _UNSUPPORTED.keys()
        given = {name: value for name, value in given.items() if value is not None}
        if "max_length" in given:
            # A limit in the call is not to be undone by the other kind of limit in a file.
            given.setdefault("max_new_tokens", None)
        if unknown := sorted(name for name, value in given.items() if name not in names and value is not False):
            raise RequestError(f"generate does not take {', '.join(unknown)}; leave it out.")
        try:
            return _settings(msgspec.structs.asdict(self), given)
        except msgspec.ValidationError as error:
            raise RequestError(f"generate was given a value of the wrong type ({error}); correct it.") from None

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop_strings] if isinstance(self.stop_strings, str) else self.stop_strings

    def check(self) -> None:
        """Check that all is supported.

        Raises:
            RequestError: something is not.
        """
        for name, value in self.unsupported.items():
            neutral = _UNSUPPORTED[name]
            if value is not None and value is not False and value != neutral:
                raise RequestError(
                    f"{name}={value!r} is not supported; pass {name}={False if neutral is None else neutral!r}.", name
                )
        if not 1 <= self.num_return_sequences <= MOST_SAMPLES:
            raise RequestError(
                f"num_return_sequences is {self.num_return_sequences}; choose from 1 to {MOST_SAMPLES}.",
                "num_return_sequences",
            )
        if self.num_return_sequences > max(1, self.num_beams) and not self.do_sample:
            raise RequestError(
                "num_return_sequences above num_beams would repeat the greedy answer; pass do_sample=True.",
                "num_return_sequences",
            )

    def beam_rules(self, room: int, ends: tuple[int, ...]) -> BeamRules:
        """Return how to search with ``num_beams``.

        Raises:
            RequestError: something does not go with a search.
        """
        alone = {
            "do_sample": self.do_sample,
            "repetition_penalty": self.repetition_penalty != 1,
            "min_new_tokens": self.min_new_tokens,
            "min_length": self.min_length,
            "bad_words_ids": self.bad_words_ids,
            "suppress_tokens": self.suppress_tokens,
            "stop_strings": self.stop_strings,
            "early_stopping": isinstance(self.early_stopping, str),
        }
        if refused := [name for name, given in alone.items() if given]:
            raise RequestError(
                f"{', '.join(refused)} cannot be had with num_beams above 1; leave one out.", "num_beams"
            )
        return BeamRules(self.num_beams, room, self.length_penalty, bool(self.early_stopping), frozenset(ends))

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

    def params(self, room: int, width: int, ends: tuple[int, ...], seed: int) -> SamplingParams:
        """Return the engine's parameters for one sequence whose prompt, with its padding, is ``width`` tokens.

        Raises:
            RequestError: a value is out of its range.
        """
        # As in Transformers, a ban on the end token is not heeded.
        banned = [tuple(word) for word in self.bad_words_ids if not (len(word) == 1 and word[0] in ends)]
        params = SamplingParams(
            max_tokens=room,
            min_tokens=self.min_new_tokens or max(0, self.min_length - width),
            temperature=0.0,
            repetition_penalty=self.repetition_penalty,
            bad_words=(*banned, *((token,) for token in self.suppress_tokens)),
            stop_token_ids=ends,
        )
        if self.do_sample:
            if not self.temperature > 0:
                raise RequestError("temperature must be above 0 when do_sample is true; pass do_sample=False.")
            params = msgspec.structs.replace(
                params,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                min_p=self.min_p,
                typical_p=self.typical_p,
                seed=seed,
            )
        params.check()
        return params


def _settings(before: dict[str, Any], given: dict[str, Any]) -> GenerationSettings:
    unsupported = {name: value for name, value in given.items() if name in _UNSUPPORTED}
    known = {
        name: value
        for name, value in given.items()
        if name in GenerationSettings.__struct_fields__ and name != "unsupported"
    }
    known["unsupported"] = {**before.get("unsupported", {}), **unsupported}
    return msgspec.convert({**before, **known}, GenerationSettings)


def read_generation_settings(model_dir: Path) -> GenerationSettings:
    """Read ``generation_config.json``, or, as Transformers does, ``config.json`` where that file is missing.

    Raises:
        InputError: the file is malformed, or a value is of the wrong type.
    """
    path = model_dir / "generation_config.json"
    path = path if path.is_file() else model_dir / "config.json"
    given = {name: value for name, value in read_config(path).items() if value is not None}
    try:
        return _settings({}, given)
    except msgspec.ValidationError as error:
        raise InputError(f"{path} has no usable generation settings ({error}); correct it.") from None
