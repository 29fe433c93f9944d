"""The files of a tokenizer, and those of an adapter that brings a chat template and no tokenizer."""

import hashlib
import shutil
from pathlib import Path

from tuneserve.checkpoint import AtomicDirectory
from tuneserve.errors import SourceError
from tuneserve.sources._cache import cache_directory, locked

_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_TEMPLATE = "chat_template.jinja"
_FILES = (
    *_TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    _TEMPLATE,
    "chat_template.json",
)
_MAX_TEMPLATE_BYTES = 1_000_000


def tokenizer_files(directory: Path) -> tuple[Path, ...]:
    """Return the files of the tokenizer in ``directory``, its chat template among them."""
    return tuple(path for name in _FILES if (path := directory / name).is_file())


def adapter_text(adapter_dir: Path, model_dir: Path) -> Path:
    """Return where an adapter's tokenizer and chat template are.

    That is the adapter's directory if it has a tokenizer of its own, since training may have changed it, else the
    model's. If it has only a template, it is a directory in the cache, with that beside the model's tokenizer.

    Raises:
        SourceError: the template is huge.
    """
    if any((adapter_dir / name).is_file() for name in _TOKENIZERS):
        return adapter_dir
    own = adapter_dir / _TEMPLATE
    if not own.is_file():
        return model_dir
    if own.stat().st_size > _MAX_TEMPLATE_BYTES:
        raise SourceError(f"{own} is too large for a chat template; save it again.")
    template = own.read_bytes()
    others = [path for path in tokenizer_files(model_dir) if path.name != _TEMPLATE]
    states = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in others]
    home = cache_directory() / "templates"
    target = home / hashlib.sha256(f"{states} ".encode() + template).hexdigest()[:32]
    with locked(home / ".lock"):
        if not target.is_dir():
            with AtomicDirectory(target) as output:
                for path in others:
                    shutil.copyfile(path, output.path / path.name)
                (output.path / _TEMPLATE).write_bytes(template)
    return target
