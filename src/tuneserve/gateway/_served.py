"""What is being served, and how it samples when a request does not say."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from tuneserve.engines.contract import Engine, SamplingParams
from tuneserve.errors import InputError, RequestError
from tuneserve.text import ChatTemplate, Tokenizer
from tuneserve.text.tools import ReasoningFormat, ToolFormat, reasoning_format, tool_format

_FILE = "generation_config.json"
_MAX_BYTES = 1 << 20
_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How close the model is after a step to the one that was trained; ``kl`` in nats, ``top1`` from 0 to 1.

    ``at_least`` says that ``kl`` is a lower bound, because an engine tells only its likeliest tokens.
    """

    kl: float
    top1: float
    positions: int
    at_least: bool = False


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step on the way from the base to what is served; ``facts`` are further lines to show, by their names."""

    kind: Literal["model", "base", "adapter", "method", "engine"]
    name: str
    facts: Mapping[str, str] = field(default_factory=dict)
    parity: Agreement | None = None


@dataclass(frozen=True)
class ServedModel:
    """One running model under the name that requests give.

    ``defaults`` are the sampling values of a request that leaves them out: those the model was published with (see
    :func:`read_sampling_defaults`), else OpenAI's. ``created`` is in seconds since the epoch. ``adapter`` is what the
    engine calls the adapter whose model this is, None for the model as served. ``adapters`` are the models of its
    adapters, each with a tokenizer and a template of its own. ``lineage`` is how it came to be, the engine last.
    """

    name: str
    tokenizer: Tokenizer
    template: ChatTemplate | None
    engine: Engine
    defaults: SamplingParams = field(default_factory=SamplingParams)
    created: int = field(default_factory=lambda: int(time.time()))
    adapter: str | None = None
    adapters: tuple["ServedModel", ...] = ()
    lineage: tuple[Step, ...] = ()

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        """How the model writes calls; None where its template shows no way that is known."""
        return None if self.template is None else tool_format(_source(self.template), self.tokenizer)

    @cached_property
    def reasoning_format(self) -> ReasoningFormat | None:
        """How the model sets its thoughts apart; None where its template shows no way that is known."""
        return None if self.template is None else reasoning_format(_source(self.template), self.tokenizer)

    @property
    def context_length(self) -> int:
        """How many tokens prompt and answer may have together."""
        return self.engine.info.context_length


def _source(template: ChatTemplate) -> str:
    return template.tool_source or template.source


def read_sampling_defaults(model_dir: Path) -> SamplingParams:
    """Read temperature, top_p, top_k, min_p and repetition_penalty from ``generation_config.json``.

    They are what the model's authors recommend, and what Transformers and vLLM use. Without the file, or for a value
    that is not in it, OpenAI's default holds: temperature 1, and no filter.

    Raises:
        InputError: the file is malformed, or a value is out of its range.
    """
    path = model_dir / _FILE
    if not path.exists():
        return SamplingParams()
    if not path.is_file():
        raise InputError(f"{path} is not a regular file; correct or remove it.")
    try:
        with path.open("rb") as file:
            values = msgspec.json.decode(file.read(_MAX_BYTES), type=dict[str, Any])
        given = {name: values[name] for name in _NAMES if values.get(name) is not None}
        params = msgspec.convert(given, SamplingParams)
        params.check()
    except (msgspec.MsgspecError, OSError, RecursionError, RequestError, UnicodeError) as error:
        raise InputError(f"{path} has no usable sampling values ({error}); correct or remove it.") from None
    return params
