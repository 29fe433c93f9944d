"""Stands in for Unsloth: the same entry points over Transformers on the processor."""

import os
from pathlib import Path
from typing import Any


class FastLanguageModel:
    """What ``unsloth.FastLanguageModel`` documents of loading and inference."""

    @staticmethod
    def from_pretrained(
        model_name: str,
        max_seq_length: int = 2048,
        dtype: Any = None,
        load_in_4bit: bool = True,
        trust_remote_code: bool = False,
    ) -> tuple[Any, None]:
        import torch
        from transformers import AutoModelForCausalLM

        assert not load_in_4bit
        assert not trust_remote_code
        assert max_seq_length
        if Path(os.environ["STAND_IN_DIRECTORY"], "broken").exists():
            raise NotImplementedError("Unsloth cannot find any torch accelerator? You need a GPU.")
        torch.set_num_threads(1)
        return AutoModelForCausalLM.from_pretrained(model_name, dtype=dtype or torch.float32), None

    @staticmethod
    def for_inference(model: Any) -> Any:
        Path(os.environ["STAND_IN_DIRECTORY"], "for_inference").touch()
        return model.eval()
