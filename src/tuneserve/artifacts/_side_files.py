"""What belongs to a model directory beside its weights and ``config.json``."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from tuneserve.sources import ResolvedSource, tokenizer_files

_MODEL_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)


def side_files(source: ResolvedSource) -> tuple[Path, ...]:
    """Return the files to copy: what describes generation and inputs from the model, the tokenizer from where it is."""
    found = [path for name in _MODEL_FILES if (path := source.model_dir / name).is_file()]
    return (*found, *tokenizer_files(source.tokenizer_dir))


def copy_files(files: Sequence[Path], directory: Path) -> None:
    """Copy ``files`` into ``directory`` under their own names."""
    for path in files:
        shutil.copyfile(path, directory / path.name)
