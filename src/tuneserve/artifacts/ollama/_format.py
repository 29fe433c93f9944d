"""A GGUF file with its Modelfile."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneserve.artifacts.gguf import GgufFormat
from tuneserve.artifacts.ollama._modelfile import MODELFILE, ollama_modelfile
from tuneserve.checkpoint import TensorSpec


class OllamaFormat(GgufFormat):
    """What ``ollama create`` takes: a GGUF file, and a Modelfile made from the model's own chat template.

    Args and errors are those of :class:`GgufFormat`, and:

    Raises:
        InputError: the chat template cannot be said in Ollama's language.
    """

    def __init__(
        self,
        specs: Mapping[str, TensorSpec],
        config: Mapping[str, Any],
        tokenizer_dir: Path,
        name: str,
        preset: str,
        *,
        model_dir: Path,
        **options: Any,
    ) -> None:
        super().__init__(specs, config, tokenizer_dir, name, preset, model_dir=model_dir, **options)
        self._modelfile = ollama_modelfile(
            f"./{next(iter(self.files))}",
            tokenizer_dir=tokenizer_dir,
            model_dir=model_dir,
            adds_bos=bool(self.metadata["tokenizer.ggml.add_bos_token"]),
        )

    def write_side_files(self, directory: Path) -> None:
        """Write the Modelfile."""
        super().write_side_files(directory)
        (directory / MODELFILE).write_text(self._modelfile, encoding="utf-8")
