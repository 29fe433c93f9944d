"""The bytes of each method's weight files, by the arithmetic that writes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from tuneserve.artifacts import DEFAULT_SHARD_BYTES, SafetensorsFormat
from tuneserve.artifacts.gguf import Description, describe
from tuneserve.checkpoint.quantised import CT_ENCODERS, Bnb4bitEncoder, Encoder
from tuneserve.errors import InputError
from tuneserve.planner._linear import linear_names
from tuneserve.planner._model import PlannedModel

GGUF, OLLAMA = "gguf:", "ollama:"


@dataclass(frozen=True)
class Weighed:
    """What a method's files take in bytes, or why it cannot be made."""

    nbytes: int | None
    problem: str | None = None


class Scales:
    """Weighs methods, each once."""

    def __init__(self, model: PlannedModel) -> None:
        self._model = model
        self._known: dict[str, Weighed] = {}

    def weigh(self, method: str) -> Weighed:
        """Return the bytes of the weight files that an export by ``method`` writes.

        For ``lora`` and for the native engine, which merges as it loads, that is the merged model's.
        """
        if method not in self._known:
            try:
                self._known[method] = Weighed(self._bytes(method))
            except InputError as error:
                self._known[method] = Weighed(None, str(error).rstrip("."))
        return self._known[method]

    def _bytes(self, method: str) -> int:
        kind, _, preset = method.partition(":")
        if preset:
            return self._description.lay_out(preset).size
        model = self._model.merged
        encoder = None if kind in ("merged_16bit", "lora") else _ENCODERS[kind](self._model)
        format_ = SafetensorsFormat(model.tensors, model.config, (), encoder, DEFAULT_SHARD_BYTES)
        return sum(planned.size for planned in format_.files.values())

    @cached_property
    def _description(self) -> Description:
        model = self._model
        return describe(
            model.merged.tensors, model.merged.config, model.source.tokenizer_dir, model.source.name,
            model.source.model_dir,
        )  # fmt: skip


def _bitsandbytes(model: PlannedModel) -> Encoder:
    linear = linear_names(model.merged.tensors.values(), model.family)
    modules = [spec.name for spec in linear.weights if ".experts." not in spec.name]
    return Bnb4bitEncoder(modules, transposed=[spec.name for spec in linear.transposed])


def _compressed_tensors(method: str) -> Callable[[PlannedModel], Encoder]:
    def make(model: PlannedModel) -> Encoder:
        return CT_ENCODERS[method](linear_names(model.merged.tensors.values(), model.family).plain, [])

    return make


_ENCODERS: Mapping[str, Callable[[PlannedModel], Encoder]] = {
    "merged_4bit": _bitsandbytes,
    **{method: _compressed_tensors(method) for method in CT_ENCODERS},
}
