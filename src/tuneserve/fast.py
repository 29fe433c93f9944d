"""``FastLanguageModel``: what Unsloth users call, over the native engine and the exporter."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from tuneserve.artifacts import SavesArtifacts
from tuneserve.engines.contract import GenerationRequest
from tuneserve.errors import InputError
from tuneserve.native import EngineConfig, NativeCore, read_generation_settings, search
from tuneserve.native.rows import StoppingCriterion, Streamer, continue_rows, padded, rows_of
from tuneserve.sources import ResolvedSource, read_config, resolve
from tuneserve.text import BackendError, guarded, open_tokenizer


class FastLanguageModel:
    """Unsloth's entry point, for inference."""

    @staticmethod
    def from_pretrained(
        model_name: str | Path,
        max_seq_length: int | None = 2048,
        dtype: torch.dtype | str | None = None,
        load_in_4bit: bool | None = None,
        *,
        load_in_8bit: bool = False,
        load_in_16bit: bool = False,
        base: str | Path | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        full_finetuning: bool = False,
        fast_inference: bool = False,
        **unknown: Any,
    ) -> tuple["NativeModel", Any]:
        """Load a model or adapter, folded into its base, with its Transformers tokenizer.

        Args:
            model_name: a model or adapter directory, or a hub id.
            max_seq_length: tokens per sequence, prompt included; None takes the model's.
            dtype: torch.float32, bfloat16 or float16, by object or name; None takes what is fast here.
            load_in_4bit: left out, the weights are loaded in 16 bits with a notice; True is refused for now.
            load_in_8bit: refused.
            load_in_16bit: what happens anyway.
            base: the base to use instead of the one that an adapter names.
            revision: of a hub id.
            trust_remote_code: refused; code from a model never runs.
            full_finetuning, fast_inference: refused; Unsloth's switches for training and for vLLM.

        Raises:
            InputError: the model cannot be loaded as it is, or an option is unknown or refused.
        """
        _refuse_unknown("from_pretrained", unknown)
        refused = {
            "load_in_4bit": bool(load_in_4bit),
            "load_in_8bit": load_in_8bit,
            "trust_remote_code": trust_remote_code,
            "full_finetuning": full_finetuning,
            "fast_inference": fast_inference,
        }
        for option, asked in refused.items():
            if asked:
                raise InputError(f"{option}=True is not supported; pass {option}=False.")
        if load_in_4bit is None and not load_in_16bit:
            warnings.warn("4-bit loading is not supported yet, so the weights are loaded in 16 bits", stacklevel=2)
        source = resolve(f"{model_name}@{revision}" if revision else model_name, base=base)
        return NativeModel(source, max_seq_length, _dtype_name(dtype)), _transformers_tokenizer(source)

    @staticmethod
    def for_inference(model: "NativeModel") -> "NativeModel":
        """Return ``model``, whose weights were fused and whose adapter was folded in when it was loaded."""
        if not isinstance(model, NativeModel):
            raise InputError("for_inference takes a model from tuneserve's from_pretrained; load it with that.")
        return model

    @staticmethod
    def for_training(_model: Any, **_options: Any) -> NoReturn:
        """Refuse: tuneserve does not train."""
        raise InputError("for_training is not part of tuneserve, which serves models; train with Unsloth or PEFT.")

    @staticmethod
    def get_peft_model(_model: Any, **_options: Any) -> NoReturn:
        """Refuse: tuneserve does not train."""
        raise InputError("get_peft_model is not part of tuneserve, which serves models; train with Unsloth or PEFT.")


class NativeModel(SavesArtifacts):
    """A loaded model with the part of Transformers' interface that inference needs."""

    def __init__(self, source: ResolvedSource, max_seq_length: int | None, dtype: str) -> None:
        config = read_config(source.model_dir / "config.json")
        limit = config.get("max_position_embeddings")
        if isinstance(max_seq_length, int) and isinstance(limit, int):
            max_seq_length = min(max_seq_length, limit)
        self.source = source
        self._core = NativeCore(EngineConfig.of(source, dtype=dtype, context_length=max_seq_length))
        self._tokenizer = open_tokenizer(source.tokenizer_dir, source.model_dir)
        self._defaults = read_generation_settings(source.model_dir)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(self._core.info.device)

    @property
    def max_seq_length(self) -> int:
        """Tokens per sequence, prompt included."""
        return self._core.info.context_length

    def eval(self) -> "NativeModel":
        """Return the model, which never trains."""
        return self

    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        inputs: torch.Tensor | None = None,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        min_new_tokens: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        streamer: Streamer | None = None,
        stopping_criteria: Sequence[StoppingCriterion] | None = None,
        seed: int | None = None,
        use_cache: bool = True,
        tokenizer: object = None,  # noqa: ARG002
        **more: Any,
    ) -> torch.Tensor:
        """Continue each row as Transformers' ``generate`` does; padding does not change what a row produces.

        Args:
            input_ids: int64 (rows, length); ``inputs`` is another name for it.
            attention_mask: 1 where a token counts, 0 for padding; all count where it is left out.
            seed: makes sampling repeatable; left out, it is drawn from PyTorch's generator.
            stopping_criteria: asked after each token of a row, with its ids, int64 (1, length), and None for scores.
            tokenizer: accepted because Transformers wants it with ``stop_strings``; the model's own is used.
            use_cache: True; nothing else is offered.
            more: ``bad_words_ids``, ``early_stopping``, ``length_penalty``, ``min_length``, ``num_beams``,
                ``num_return_sequences``, ``pad_token_id``, ``stop_strings``, ``suppress_tokens``, ``typical_p``.

        The other arguments mean what they mean in Transformers, with the same defaults from
        ``generation_config.json``. ``streamer`` takes one row. What Transformers takes beside these may be given as
        None, False or what changes nothing.

        Returns:
            int64 (rows * num_return_sequences, longest): the input with what followed, padded at the end.

        Raises:
            InputError: an argument is unknown, malformed or not supported.
        """
        if not use_cache:
            raise InputError("use_cache=False is not supported; leave it out.")
        if input_ids is not None and inputs is not None:
            raise InputError("input_ids and inputs are two names for one argument; pass one of them.")
        ids = input_ids if input_ids is not None else inputs
        rows = rows_of(ids, attention_mask)
        ends = tuple(self._ends(eos_token_id))
        settings = self._defaults.with_given(
            do_sample=do_sample, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty, min_new_tokens=min_new_tokens, max_new_tokens=max_new_tokens,
            max_length=max_length, **more,
        )  # fmt: skip
        settings.check()
        if streamer is not None and len(rows) * settings.num_return_sequences != 1:
            raise InputError("a streamer takes a single row; pass one prompt.")
        assert ids is not None
        # In Transformers the padded width counts towards max_length.
        room = settings.room(ids.shape[1])
        if settings.num_beams > 1:
            if streamer is not None or stopping_criteria:
                raise InputError(
                    "a streamer and stopping_criteria cannot be had with num_beams above 1; leave them out."
                )
            found = search(self._core, rows, settings.beam_rules(room, ends))
            outputs = [beam.token_ids for beams in found for beam in beams[: settings.num_return_sequences]]
        else:
            first_seed = int(torch.randint(2**62, ())) if seed is None else seed
            prompts = [row for row in rows for _ in range(settings.num_return_sequences)]
            requests = [
                GenerationRequest(
                    id=str(index),
                    prompt_ids=prompt,
                    params=settings.params(room, ids.shape[1], ends, first_seed + index),
                )
                for index, prompt in enumerate(prompts)
            ]
            outputs = continue_rows(
                self._core, self._tokenizer, requests, settings.stops, streamer, list(stopping_criteria or ())
            )
        pad = settings.pad_token_id if settings.pad_token_id is not None else next(iter(ends), 0)
        return padded(ids.repeat_interleave(settings.num_return_sequences, dim=0), outputs, pad)

    def _ends(self, given: int | Sequence[int] | None) -> list[int]:
        if given is not None:
            return [given] if isinstance(given, int) else list(given)
        return sorted(token for token in self._tokenizer.end_token_ids if token < self._core.info.vocab_size)


def _dtype_name(dtype: torch.dtype | str | None) -> str:
    return "auto" if dtype is None else str(dtype).removeprefix("torch.")


def _transformers_tokenizer(source: ResolvedSource) -> Any:
    from transformers import AutoTokenizer

    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        return guarded(lambda: AutoTokenizer.from_pretrained(source.tokenizer_dir, **options))
    except BackendError as error:
        raise InputError(
            f"Transformers cannot load the tokenizer in {source.tokenizer_dir} ({error}); save it there again."
        ) from None


def _refuse_unknown(where: str, unknown: dict[str, Any]) -> None:
    if unknown:
        raise InputError(f"{where} does not take {', '.join(sorted(unknown))}; leave it out.")
