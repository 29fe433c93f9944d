"""Unsloth's methods for saving, over :func:`export`; each of their arguments is honoured or refused by name."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tuneserve.artifacts._export import export
from tuneserve.artifacts._hub import HubUpload, upload
from tuneserve.artifacts._size import parse_size
from tuneserve.errors import InputError
from tuneserve.sources import ResolvedSource

_SHARD = "5GB"
_BUFFERS = "_unsloth_temporary_saved_buffers"
_MESSAGE, _DESCRIPTION = "Upload with tuneserve", None


class SavesArtifacts:
    """What makes artifacts of a loaded model's source.

    Common arguments: ``tokenizer``, where given, is saved with the model in place of the source's own files;
    ``is_main_process`` false does nothing; ``maximum_memory_usage`` is always kept, because weights pass through one by
    one. ``state_dict``, ``save_function``, ``safe_serialization=False``, ``variant``, ``save_peft_format=False`` and
    ``temporary_location`` change how other libraries write and are refused.
    """

    source: ResolvedSource

    def save_pretrained_merged(
        self,
        save_directory: str | Path,
        tokenizer: Any = None,
        save_method: str = "merged_16bit",
        push_to_hub: bool = False,
        token: str | bool | None = None,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        save_function: Callable[..., Any] = torch.save,
        max_shard_size: int | str = _SHARD,
        safe_serialization: bool = True,
        variant: str | None = None,
        save_peft_format: bool = True,
        tags: Sequence[str] | None = None,
        temporary_location: str = _BUFFERS,
        maximum_memory_usage: float = 0.75,
        **unknown: Any,
    ) -> None:
        """Export with the adapter merged into the new directory ``save_directory``, and verify it.

        ``save_method`` is any method of :data:`METHODS`. With ``push_to_hub`` the directory's name is the repository's,
        and ``token`` and ``tags`` go there.

        Raises:
            InputError: an argument is refused, or the export is.
            ParityError: the result is not the model that was trained.
        """
        _refuse(
            unknown, state_dict=state_dict, save_function=save_function, safe_serialization=safe_serialization,
            variant=variant, save_peft_format=save_peft_format, temporary_location=temporary_location,
            maximum_memory_usage=maximum_memory_usage,
        )  # fmt: skip
        if is_main_process:
            self._export([save_method], save_directory, tokenizer, max_shard_size)
            if push_to_hub:
                upload(Path(save_directory), HubUpload(repo_id=str(save_directory), token=token, tags=tags))

    def save_pretrained_gguf(
        self,
        save_directory: str | Path,
        tokenizer: Any = None,
        quantization_method: str | Sequence[str] = "fast_quantized",
        first_conversion: str | None = None,
        push_to_hub: bool = False,
        token: str | bool | None = None,
        private: bool | None = None,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        save_function: Callable[..., Any] = torch.save,
        max_shard_size: int | str = _SHARD,
        safe_serialization: bool = True,
        variant: str | None = None,
        save_peft_format: bool = True,
        tags: Sequence[str] | None = None,
        temporary_location: str = _BUFFERS,
        maximum_memory_usage: float = 0.85,
        save_method: str | None = None,
        imatrix_file: str | Path | None = None,
        merge_is_disposable: bool = True,  # noqa: ARG002 - there is no intermediate merge to dispose of
        **unknown: Any,
    ) -> None:
        """Export as GGUF in one or several quantisations, or with ``save_method="lora"`` the adapter alone; verify.

        One quantisation goes into ``save_directory`` itself, several into directories of it by method.
        ``first_conversion`` is refused: all are made from the merged 16-bit weights. ``imatrix_file`` is text that an
        importance matrix is computed from.

        Raises:
            InputError: an argument is refused, or the export is.
            ParityError: a result is not the model that was trained.
        """
        _refuse(
            unknown, state_dict=state_dict, save_function=save_function, safe_serialization=safe_serialization,
            variant=variant, save_peft_format=save_peft_format, temporary_location=temporary_location,
            maximum_memory_usage=maximum_memory_usage, first_conversion=first_conversion,
        )  # fmt: skip
        if is_main_process:
            methods = _gguf_methods(quantization_method, save_method)
            self._export(methods, save_directory, tokenizer, max_shard_size, imatrix_file)
            if push_to_hub:
                where = HubUpload(repo_id=str(save_directory), token=token, private=private, tags=tags)
                upload(Path(save_directory), where)

    def push_to_hub_merged(
        self,
        repo_id: str,
        tokenizer: Any = None,
        save_method: str = "merged_16bit",
        use_temp_dir: bool | None = None,
        commit_message: str | None = _MESSAGE,
        private: bool | None = None,
        token: bool | str | None = None,
        max_shard_size: int | str | None = _SHARD,
        create_pr: bool = False,
        safe_serialization: bool = True,
        revision: str | None = None,
        commit_description: str | None = _DESCRIPTION,
        tags: Sequence[str] | None = None,
        temporary_location: str = _BUFFERS,
        maximum_memory_usage: float = 0.75,
        datasets: Sequence[str] | None = None,
        **unknown: Any,
    ) -> None:
        """Export as :meth:`save_pretrained_merged` does, into a temporary directory, and upload it to ``repo_id``.

        Raises:
            InputError: an argument is refused, the export is, or the hub does.
            ParityError: the result is not the model that was trained; nothing is uploaded.
        """
        _refuse(
            unknown, use_temp_dir=use_temp_dir, safe_serialization=safe_serialization,
            temporary_location=temporary_location, maximum_memory_usage=maximum_memory_usage,
        )  # fmt: skip
        where = HubUpload(
            repo_id=repo_id, token=token, private=private, revision=revision, create_pr=create_pr, tags=tags,
            datasets=datasets, message=commit_message, description=commit_description,
        )  # fmt: skip
        self._push([save_method], where, tokenizer, max_shard_size)

    def push_to_hub_gguf(
        self,
        repo_id: str,
        tokenizer: Any = None,
        quantization_method: str | Sequence[str] = "fast_quantized",
        first_conversion: str | None = None,
        use_temp_dir: bool | None = None,
        commit_message: str | None = _MESSAGE,
        private: bool | None = None,
        token: bool | str | None = None,
        max_shard_size: int | str | None = _SHARD,
        create_pr: bool = False,
        safe_serialization: bool = True,
        revision: str | None = None,
        commit_description: str | None = _DESCRIPTION,
        tags: Sequence[str] | None = None,
        temporary_location: str = _BUFFERS,
        maximum_memory_usage: float = 0.85,
        datasets: Sequence[str] | None = None,
        save_method: str | None = None,
        imatrix_file: str | Path | None = None,
        is_main_process: bool = True,
        **unknown: Any,
    ) -> None:
        """Export as :meth:`save_pretrained_gguf` does, into a temporary directory, and upload it to ``repo_id``.

        Raises:
            InputError: an argument is refused, the export is, or the hub does.
            ParityError: a result is not the model that was trained; nothing is uploaded.
        """
        _refuse(
            unknown, use_temp_dir=use_temp_dir, safe_serialization=safe_serialization,
            temporary_location=temporary_location, maximum_memory_usage=maximum_memory_usage,
            first_conversion=first_conversion,
        )  # fmt: skip
        where = HubUpload(
            repo_id=repo_id, token=token, private=private, revision=revision, create_pr=create_pr, tags=tags,
            datasets=datasets, message=commit_message, description=commit_description,
        )  # fmt: skip
        if is_main_process:
            methods = _gguf_methods(quantization_method, save_method)
            self._push(methods, where, tokenizer, max_shard_size, imatrix_file)

    def _push(
        self,
        methods: list[str],
        where: HubUpload,
        tokenizer: Any,
        max_shard_size: int | str | None,
        imatrix_file: str | Path | None = None,
    ) -> None:
        with tempfile.TemporaryDirectory(prefix="tuneserve-push-") as scratch:
            out = Path(scratch) / "model"
            self._export(methods, out, tokenizer, max_shard_size or _SHARD, imatrix_file)
            upload(out, where)

    def _export(
        self,
        methods: list[str],
        out: str | Path,
        tokenizer: Any,
        max_shard_size: int | str,
        imatrix_file: str | Path | None = None,
    ) -> None:
        shard = max_shard_size if isinstance(max_shard_size, int) else parse_size(max_shard_size)
        with _with_tokenizer(self.source, tokenizer) as source:
            export(source, out, method=methods, max_shard_bytes=shard, imatrix_from=imatrix_file)


@contextmanager
def _with_tokenizer(source: ResolvedSource, tokenizer: Any) -> Iterator[ResolvedSource]:
    if tokenizer is None:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="tuneserve-tokenizer-") as scratch:
        try:
            tokenizer.save_pretrained(scratch)
        except (AttributeError, OSError, TypeError, ValueError) as error:
            raise InputError(
                f"the tokenizer cannot be saved ({str(error)[:200].rstrip('.')}); pass the one that from_pretrained "
                "returned, or leave it out."
            ) from error
        yield replace(source, tokenizer_dir=Path(scratch))


def _gguf_methods(quantization: str | Sequence[str], save_method: str | None) -> list[str]:
    if save_method is not None:
        if save_method.lower() == "lora":
            return ["gguf-lora"]
        raise InputError(f"save_method={save_method!r} is not a way to make GGUF; leave it out, or pass 'lora'.")
    names = [quantization] if isinstance(quantization, str) else list(quantization)
    return [f"gguf:{name}" for name in names]


def _refuse(
    unknown: dict[str, Any],
    *,
    safe_serialization: bool,
    temporary_location: str,
    maximum_memory_usage: float,
    state_dict: object = None,
    save_function: object = torch.save,
    variant: object = None,
    save_peft_format: bool = True,
    first_conversion: object = None,
    use_temp_dir: bool | None = None,
) -> None:
    refused = {
        "state_dict": state_dict is not None,
        "save_function": save_function is not torch.save,
        "safe_serialization=False": not safe_serialization,
        "variant": variant is not None,
        "save_peft_format=False": not save_peft_format,
        "temporary_location": temporary_location != _BUFFERS,
        "first_conversion": first_conversion is not None,
        "use_temp_dir=False": use_temp_dir is False,
        f"maximum_memory_usage={maximum_memory_usage}": not 0 < maximum_memory_usage <= 1,
    }
    found = sorted(unknown) + [name for name, is_refused in refused.items() if is_refused]
    if found:
        raise InputError(f"{', '.join(found)} is not supported when saving; leave it out.")
