"""Tiny bases of several families and real PEFT adapters of them, and the comparison of merged with unmerged."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneserve.adapters import MergedModel, WeightedAdapter, merge_model, open_adapter
from tuneserve.checkpoint import open_checkpoint

Config = dict[str, Any]
_COMMON: Config = {
    "vocab_size": 40,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_DECODER: Config = {
    **_COMMON,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
FAMILIES: dict[str, Config] = {
    "llama": {**_DECODER, "model_type": "llama"},
    "qwen2": {**_DECODER, "model_type": "qwen2"},
    "gemma2": {**_DECODER, "model_type": "gemma2", "query_pre_attn_scalar": 8, "sliding_window": 16},
    "phi3": {**_DECODER, "model_type": "phi3"},
    "gpt_neox": {**_DECODER, "model_type": "gpt_neox"},
    "gpt2": {**_COMMON, "model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "qwen3_moe": {
        **_DECODER,
        "model_type": "qwen3_moe",
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
    },
    "mixtral": {**_DECODER, "model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2},
    "granitemoe": {**_DECODER, "model_type": "granitemoe", "num_local_experts": 3, "num_experts_per_tok": 2},
    "gpt_oss": {
        **_DECODER,
        "model_type": "gpt_oss",
        "intermediate_size": 16,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    # The seeds set here are no other test's.
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        yield


class Lab:
    """Makes bases and adapters in a directory of its own, and compares merged with unmerged."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def base(self, family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
        """Save a random model of ``family`` with Transformers."""
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        config = AutoConfig.for_model(**{**FAMILIES[family], **changes})
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        return self._save(model.to(dtype), "base")

    def adapter(
        self,
        base: Path,
        config: Any,
        dtype: torch.dtype = torch.float32,
        *,
        base_dtype: torch.dtype = torch.float32,
        resize: int | None = None,
        **save: Any,
    ) -> Path:
        """Save an adapter of ``base`` with PEFT, moved as by training; ``config`` is PEFT's own."""
        from peft import get_peft_model

        model = self.load(base, resize, base_dtype)
        directory = self._save(train(get_peft_model(model, config)), "adapter", **save)
        path = directory / "adapter_model.safetensors"
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
        return directory

    def change(self, directory: Path, **fields: Any) -> Path:
        """Change an adapter's configuration."""
        path = directory / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
        return directory

    def unmerged(
        self, base: Path, *adapters: Path, resize: int | None = None, dtype: torch.dtype = torch.float32
    ) -> Any:
        """Load PEFT's own unmerged model; the first adapter is active."""
        from peft import PeftModel

        tuned = PeftModel.from_pretrained(self.load(base, resize, dtype), str(adapters[0]), adapter_name="a0")
        for index, adapter in enumerate(adapters[1:], 1):
            tuned.load_adapter(str(adapter), adapter_name=f"a{index}")
        return tuned.eval().float()

    def merge(self, base: Path, *adapters: Path, weights: tuple[float, ...] = (), **options: Any) -> MergedModel:
        """Merge adapters into a base."""
        factors = weights or (1.0,) * len(adapters)
        opened = [WeightedAdapter(open_adapter(path), factor) for path, factor in zip(adapters, factors, strict=True)]
        config = json.loads((base / "config.json").read_text())
        return merge_model(open_checkpoint(base), config, opened, **options)

    def load_merged(self, merged: MergedModel) -> Any:
        """Load a merged model with Transformers."""
        directory = self.new("merged")
        tensors = {name: merged.read(name).contiguous() for name in merged.tensors}
        for name, spec in merged.tensors.items():
            assert tuple(tensors[name].shape) == spec.shape, name
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        (directory / "config.json").write_text(json.dumps(dict(merged.config)))
        return self.load(directory)

    def check(self, base: Path, adapter: Path, resize: int | None = None) -> MergedModel:
        """Check that the merged model's logits are those of the unmerged one, and differ from the base's."""
        # In float32, so that no rounding hides a mistake.
        merged = self.merge(base, adapter, dtype="float32")
        self.compare(merged, self.unmerged(base, adapter, resize=resize))
        return merged

    def compare(self, merged: MergedModel, reference: Any) -> None:
        """Compare logits.

        The same sums in another order differ by float32 roundings of 6e-8, which these random networks amplify up to
        about a thousand times; a delta that is missing or misplaced moves them by far more than a hundredth.
        """
        expected, ours = logits(reference), logits(self.load_merged(merged))
        assert expected.shape == ours.shape
        error = float((expected - ours).abs().max() / expected.abs().max().clamp(min=1.0))
        assert error <= 5e-4
        assert merged.changed

    def train(self, model: Any) -> Any:
        """Move every trainable parameter, as training would."""
        return train(model)

    def logits(self, model: Any) -> torch.Tensor:
        """Return the logits of a fixed sequence."""
        return logits(model)

    def load(self, directory: Path, resize: int | None = None, dtype: torch.dtype = torch.float32) -> Any:
        """Load a model with Transformers; every weight must be there, and no other."""
        from transformers import AutoModelForCausalLM

        model, info = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation="eager", output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
        if resize:
            torch.manual_seed(1)
            model.resize_token_embeddings(resize, mean_resizing=False)
        return model.eval()

    def _save(self, model: Any, kind: str, **options: Any) -> Path:
        directory = self.new(kind)
        model.save_pretrained(directory, **options)
        return directory

    def new(self, kind: str) -> Path:
        """Make a directory."""
        directory = self.home / f"{kind}{len(list(self.home.iterdir()))}"
        directory.mkdir()
        return directory


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def train(model: Any, scale: float = 0.2) -> Any:
    """Move every trainable parameter, as training would."""
    generator = torch.Generator().manual_seed(5)
    seen = set()
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.data_ptr() not in seen:
            seen.add(parameter.data_ptr())
            parameter.data += (torch.randn(parameter.shape, generator=generator) * scale).to(parameter.dtype)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    """Return the logits of a fixed sequence that has most tokens of the small vocabulary in it."""
    ids = torch.randperm(40, generator=torch.Generator().manual_seed(3))[None, :32]
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return result[0]
