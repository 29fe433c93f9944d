"""A model's tokenizer as GGUF metadata, from what the ``tokenizers`` library makes of its files."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneserve.artifacts.gguf._bytelevel import bytelevel_metadata
from tuneserve.artifacts.gguf._header import Value
from tuneserve.artifacts.gguf._sentencepiece import sentencepiece_metadata
from tuneserve.artifacts.gguf._tokens import token_list
from tuneserve.errors import TextError
from tuneserve.text import Tokenizer, open_chat_template, open_tokenizer, special_tokens

# llama.cpp has room for three ends; it finds these by itself (src/llama-vocab.cpp).
_KNOWN_ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "</s>",
    "<|eom_id|>", "<EOT>", "<|end_of_text|>", "<eos>",
)  # fmt: skip
_PHI3 = re.compile("phi-?3", re.IGNORECASE)
_PHI3_TOKENS = {"<unk>", "<s>", "</s>", "<|endoftext|>"}


def tokenizer_metadata(
    directory: Path | None, name: str, rows: int, config: Mapping[str, Any], model_dir: Path | None = None
) -> dict[str, Value]:
    """Return all of ``tokenizer.*``, and the model's ``general.name``, which to llama.cpp says something of the tokens.

    Args:
        directory: where the tokenizer's files are.
        name: what the model is called.
        rows: of the embedding; tokens are padded to as many.
        config: the model's configuration, for the tokens that it alone names.
        model_dir: where else to look for the tokens that end an answer.

    Raises:
        TextError: there is no tokenizer, it is malformed, or llama.cpp would divide text into other tokens.
    """
    if directory is None:
        raise TextError(
            "a GGUF file holds the tokenizer and the model has none; put tokenizer.json beside its weights."
        )
    tokenizer = open_tokenizer(directory, model_dir)
    # With the tokens that only tokenizer_config.json has.
    definition: dict[str, Any] = json.loads(tokenizer.backend.to_str())
    model = definition["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise TextError(
            f"the tokenizer in {directory} is of a kind ({model['type']}) that has no place in a decoder's GGUF file; "
            "export as merged_16bit and use an engine that runs the tokenizer itself."
        )
    names = special_tokens(directory)
    tokens = token_list(definition, rows, names.get("unk_token"), str(directory))
    template = open_chat_template(directory)
    if model["byte_fallback"]:
        metadata = sentencepiece_metadata(definition, tokens, str(directory), chats=template is not None)
    else:
        metadata = bytelevel_metadata(definition, tokens, str(directory))
    metadata["general.name"] = _name(name, definition, tokens.texts)
    metadata |= _special(tokenizer, names, rows, config, directory)
    if template is not None:
        metadata["tokenizer.chat_template"] = template.source
        if template.tool_source is not None:
            metadata["tokenizer.chat_template.tool_use"] = template.tool_source
            metadata["tokenizer.chat_templates"] = ["tool_use"]
    return metadata


def _name(name: str, definition: Mapping[str, Any], texts: list[str]) -> str:
    """Say Phi-3 where special tokens swallow the spaces behind them, and only there.

    llama.cpp knows this by that name alone, and does not load a model of that name without those tokens.
    """
    strips = any(token["special"] and token["rstrip"] for token in definition["added_tokens"])
    if strips and set(texts) >= _PHI3_TOKENS:
        return name if _PHI3.search(name) else f"{name} (Phi-3)"
    return _PHI3.sub("Phi 3", name)


def _special(
    tokenizer: Tokenizer, names: Mapping[str, str], rows: int, config: Mapping[str, Any], directory: Path
) -> dict[str, Value]:
    ids = {key.removesuffix("_token"): tokenizer.backend.token_to_id(text) for key, text in names.items()}
    bos, eos = _first(ids.get("bos"), config.get("bos_token_id"), rows), _first(ids.get("eos"), None, rows)
    configured = config.get("eos_token_id")
    listed = configured if isinstance(configured, list) else [configured]
    ends = {*tokenizer.end_token_ids, *(end for end in listed if type(end) is int)}
    others = sorted(end for end in ends if end != eos and 0 <= end < rows)
    if eos is None and not others:
        raise TextError(
            f"nothing in {directory} says which token ends an answer; set eos_token in tokenizer_config.json."
        )
    if eos is None:
        eos = others.pop(0)
    found: dict[str, Value] = {"tokenizer.ggml.eos_token_id": eos}
    # An end that llama.cpp does not find by itself comes first into what room there is.
    others.sort(key=lambda end: tokenizer.backend.id_to_token(end) in _KNOWN_ENDS)
    for key, end in zip(("eot", "eom"), others, strict=False):
        found[f"tokenizer.ggml.{key}_token_id"] = end
    if any(tokenizer.backend.id_to_token(end) not in _KNOWN_ENDS for end in others[2:]):
        raise TextError(
            f"the files in {directory} name {len(others) + 1} tokens that end an answer and a GGUF file holds three; "
            "leave the ones that the model never writes out of eos_token_id in generation_config.json."
        )
    for key, name in (("pad", "padding"), ("unk", "unknown"), ("sep", "seperator"), ("mask", "mask")):
        if (number := ids.get(key)) is not None and number < rows:
            found[f"tokenizer.ggml.{name}_token_id"] = number
    if bos is not None:
        found["tokenizer.ggml.bos_token_id"] = bos
    return found | _added(tokenizer, bos, eos, directory)


def _first(number: int | None, configured: Any, rows: int) -> int | None:
    chosen = configured if number is None else number
    return chosen if type(chosen) is int and 0 <= chosen < rows else None


def _added(tokenizer: Tokenizer, bos: int | None, eos: int, directory: Path) -> dict[str, Value]:
    """Tell what the tokenizer puts around a text by having it do so."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a", add_special_tokens=True)
    adds_bos, adds_eos = whole[:1] == [bos] and plain[:1] != [bos], whole[-1:] == [eos] and plain[-1:] != [eos]
    if whole != [*([bos] if adds_bos else []), *plain, *([eos] if adds_eos else [])]:
        raise TextError(
            f"the tokenizer in {directory} puts other tokens around a text than BOS and EOS, which llama.cpp cannot; "
            "export as merged_16bit and use an engine that runs the tokenizer itself."
        )
    return {"tokenizer.ggml.add_bos_token": adds_bos, "tokenizer.ggml.add_eos_token": adds_eos}
