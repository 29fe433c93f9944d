"""What belongs to a model directory beside its weights and ``config.json``."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from tuneserve.sources import ResolvedSource

_MODEL_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def side_files(source: ResolvedSource) -> tuple[Path, ...]:
    """Return the files to copy: what describes generation and inputs from the model, the tokenizer from where it is."""
    found = [path for name in _MODEL_FILES if (path := source.model_dir / name).is_file()]
    return (*found, *tokenizer_files(source.tokenizer_dir))


def tokenizer_files(directory: Path) -> tuple[Path, ...]:
    """Return the files of the tokenizer in ``directory``."""
    return tuple(path for name in TOKENIZER_FILES if (path := directory / name).is_file())


def copy_files(files: Sequence[Path], directory: Path) -> None:
    """Copy ``files`` into ``directory`` under their own names."""
    for path in files:
        shutil.copyfile(path, directory / path.name)
