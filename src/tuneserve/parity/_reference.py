"""The independent side: Transformers models with PEFT's own layers, unmerged.

Nothing here shares code with the merge. Both sides run in float32, so that the only rounding that shows is the
rounding of the candidate's weights.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tuneserve.errors import SourceError
from tuneserve.sources import ResolvedSource


def load_model(source: ResolvedSource) -> torch.nn.Module:
    """Load ``source`` in float32 on the CPU, its adapter (if any) unmerged on top.

    Raises:
        SourceError: Transformers or PEFT cannot load it.
    """
    with _quiet():
        try:
            model: torch.nn.Module = _causal_lm(source.model_dir)
            if source.adapter_dir is None:
                return model
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(source.adapter_dir)).eval()
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
            reason = str(error).partition("\n")[0][:300].rstrip(".")
            raise SourceError(
                f"{source.name} cannot be checked because Transformers does not load it ({reason}); "
                "repair it, or skip the check with --no-verify."
            ) from error
        return model


def _causal_lm(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    return model.eval()


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return the float32 logits of ``ids`` (1, length) as (length, vocabulary)."""
    output: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return output[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' progress bars and advice out of our own output."""
    from transformers.utils import logging as transformers_logging

    logger = transformers_logging.get_logger("transformers")
    level, bars = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
