"""A base as a GGUF file and as a directory with the same weights, and adapters that PEFT itself makes for it."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tuneserve.sources import open_model, resolve

IDS = [258, 5, 77, 200, 31, 9, 8, 257, 256, 4, 3, 99]


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore the libraries' own warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass
class Bench:
    """Makes adapters of ``directory``, whose weights are those of ``gguf``."""

    home: Path
    gguf: Path
    directory: Path

    def model(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.directory, dtype=torch.float32)

    @_quiet()
    def adapter(self, **options: Any) -> Path:
        torch.manual_seed(1)
        model = get_peft_model(self.model(), LoraConfig(task_type="CAUSAL_LM", **options))
        with torch.no_grad():
            for parameter in (p for p in model.parameters() if p.requires_grad):
                parameter.add_(torch.randn_like(parameter) * 0.1)
        target = self.home / f"adapter-{len(list(self.home.iterdir()))}"
        model.save_pretrained(target, save_embedding_layers=False)
        return target

    @_quiet()
    def logits(self, adapter: Path | None = None) -> torch.Tensor:
        model = self.model()
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter))
        with torch.no_grad():
            logits: torch.Tensor = model.eval()(torch.tensor([IDS])).logits[0]
        return logits


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_gguf_model: Callable[..., Path]
) -> Callable[..., Bench]:
    """Return what makes a bench for an architecture."""
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path / "cache"))

    def make(architecture: str = "llama") -> Bench:
        path = write_gguf_model(tmp_path / "base.gguf", architecture)
        source = resolve(path)
        weights, _ = open_model(source)
        shutil.copytree(source.model_dir, tmp_path / "base")
        tensors = {name: weights.read(name) for name in weights.tensors}
        save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
        return Bench(tmp_path, path, tmp_path / "base")

    return make
