"""The importance matrix: how much each column of each weight matters on the user's own text.

As llama.cpp's ``llama-imatrix``: the text in pieces of one context, and for each weight the mean of the squares of its
inputs. The model runs whole in memory, so that none of this is within an export's bounds of memory.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tuneserve.adapters import check_patterns_end
from tuneserve.artifacts.gguf._activations import Activations
from tuneserve.artifacts.gguf._metadata import read_model
from tuneserve.errors import InputError, SourceError
from tuneserve.parity import quiet
from tuneserve.sources import ResolvedSource, read_config
from tuneserve.spec import check_buildable
from tuneserve.text import Tokenizer, open_tokenizer

CONTEXT = 512
_MAX_TEXT_BYTES = 100_000_000


@dataclass(frozen=True)
class Imatrix:
    """``values`` by GGUF tensor: the mean square of each input, float32 of (columns,) or (experts, columns)."""

    values: Mapping[str, torch.Tensor]


def compute_imatrix(
    source: ResolvedSource, text: Path, *, context: int = CONTEXT, chunks: int | None = None
) -> Imatrix:
    """Run ``source`` over ``text`` on the CPU, its adapter unmerged on top of its base, and see what its weights get.

    Args:
        source: the model; it is loaded in bfloat16 where that is its dtype, else in float32.
        text: a UTF-8 file, best of what the model is for; some hundred kilobytes are enough.
        context: tokens a piece; text beyond the last whole piece is left out.
        chunks: use only as many pieces.

    Raises:
        InputError: the text is unreadable, or shorter than a piece.
        SourceError: Transformers or PEFT cannot load the model.
        SpecError: GGUF does not have the model's family, or the inputs of its experts cannot be seen.
        TextError: the tokenizer is missing or malformed.
    """
    config = read_config(source.model_dir / "config.json")
    family = read_model(config).family
    tokenizer = open_tokenizer(source.tokenizer_dir, source.model_dir)
    pieces = list(_pieces(tokenizer, _read(text), context, chunks))
    if not pieces:
        raise InputError(
            f"{text} has less than the {context} tokens that an importance matrix takes; use a longer text."
        )
    model = _load(source, config)
    activations = Activations(family)
    with activations.watching(model), torch.no_grad():
        for ids in pieces:
            model(input_ids=torch.tensor([ids]), use_cache=False)
    return Imatrix(activations.means())


def _pieces(tokenizer: Tokenizer, text: str, context: int, chunks: int | None) -> Iterator[list[int]]:
    """Yield pieces of one context, each beginning as the tokenizer begins a text."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    probe = tokenizer.encode("a", add_special_tokens=True)
    first = probe[: len(probe) - len(tokenizer.encode("a", add_special_tokens=False))][:1]
    step = context - len(first)
    for number, start in enumerate(range(0, len(ids) - step + 1, step)):
        if number == chunks:
            return
        yield [*first, *ids[start : start + step]]


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_TEXT_BYTES:
            raise InputError(f"{path} is larger than {_MAX_TEXT_BYTES:,} bytes; use a part of it.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text ({error}); name a text file.") from None


def _load(source: ResolvedSource, config: Mapping[str, Any]) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    check_buildable(config)
    named = config.get("dtype", config.get("torch_dtype"))
    with quiet():
        try:
            model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
                source.model_dir,
                dtype=torch.bfloat16 if named == "bfloat16" else torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
            if source.adapter_dir is not None:
                from peft import PeftModel

                check_patterns_end(source.adapter_dir, (module for module, _ in model.named_modules()))
                model = PeftModel.from_pretrained(model, str(source.adapter_dir))
        except InputError:
            raise
        # Each library that has a hand in loading raises errors of its own.
        except Exception as error:
            reason = str(error).partition("\n")[0][:300].rstrip(".")
            raise SourceError(
                f"the importance matrix of {source.name} cannot be computed because Transformers does not load it "
                f"({reason}); repair it, or use a GGUF type that needs none."
            ) from error
    return model.eval()
