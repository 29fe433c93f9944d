"""A GGUF file with its Modelfile."""

from pathlib import Path

from tuneserve.artifacts.gguf import GgufFormat
from tuneserve.artifacts.ollama._modelfile import write_modelfile


class OllamaFormat(GgufFormat):
    """What ``ollama create`` takes: a GGUF file, and a Modelfile made from the model's own template."""

    def write_side_files(self, directory: Path) -> None:
        """Write the Modelfile.

        Raises:
            InputError: the chat template cannot be said in Ollama's language.
        """
        super().write_side_files(directory)
        gguf = self.candidate(directory)
        write_modelfile(gguf, tokenizer_dir=self.tokenizer_dir, model_dir=self.model_dir)
