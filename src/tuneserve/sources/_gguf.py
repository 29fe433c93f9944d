"""A GGUF file as a source: a directory of what describes the model, made from its metadata, beside the file itself."""

import hashlib
from pathlib import Path
from typing import Any

from tuneserve.checkpoint import AtomicDirectory, GgufFile, open_gguf, write_json
from tuneserve.errors import CheckpointError
from tuneserve.sources._cache import cache_directory, locked
from tuneserve.sources._gguf_config import gguf_config
from tuneserve.sources._gguf_tokenizer import end_token_ids, write_tokenizer_files
from tuneserve.sources._gguf_weights import GgufWeights, gguf_weights

# Raised when the description changes, so that an older one is not taken for the new one.
_DESCRIPTION = 1
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def describe_gguf(path: Path) -> Path:
    """Return the directory with the configuration, tokenizer and chat template of the model in the file at ``path``.

    It is made at the first call, in the cache, under a name that follows from the file's header, size and time.

    Raises:
        CheckpointError: the file is malformed.
        SourceError: it is no model of a known family, or its tokenizer is of no known kind.
        SpecError: a field of its configuration is missing or malformed.
    """
    file = open_gguf(path)
    states = [(part.stat().st_size, part.stat().st_mtime_ns) for part in file.paths]
    key = hashlib.sha256(f"{_DESCRIPTION} {states} {file.digest}".encode()).hexdigest()[:32]
    home = cache_directory() / "gguf"
    target = home / key
    with locked(home / ".lock"):
        if not target.is_dir():
            with AtomicDirectory(target) as output:
                write_description(file, output.path)
    return target


def write_description(file: GgufFile, directory: Path) -> None:
    """Write configuration, tokenizer and chat template of ``file`` into ``directory``.

    Raises:
        InputError: as :func:`describe_gguf`.
    """
    config = gguf_config(file)
    config["dtype"] = _DTYPES[_weights(file, config).dtype]
    write_json(directory / "config.json", config)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
    ends = end_token_ids(file.metadata)
    if len(ends) > 1:
        ids["eos_token_id"] = ends
    write_json(directory / "generation_config.json", ids)
    context: int = config.get("max_position_embeddings") or config["n_positions"]
    write_tokenizer_files(file, directory, context)


def open_gguf_weights(path: Path, config: dict[str, Any]) -> GgufWeights:
    """Open the weights of the file at ``path``, which ``config`` (from its description) belongs to.

    Raises:
        CheckpointError: the file is malformed, or its tensors do not go together.
    """
    return _weights(open_gguf(path), config)


def _weights(file: GgufFile, config: dict[str, Any]) -> GgufWeights:
    heads = config.get("num_attention_heads") or config.get("n_head")
    family = config.get("model_type")
    if not isinstance(heads, int) or not isinstance(family, str):
        raise CheckpointError(f"{file.paths[0]} has no configuration; download it again.")
    return gguf_weights(file, family, heads, config.get("num_key_value_heads", heads))
