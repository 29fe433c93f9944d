"""The byte-level BPE tokenizer that a GGUF file describes, as Hugging Face files."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tuneserve.checkpoint import write_json
from tuneserve.errors import SourceError

_CONTROL, _USER_DEFINED = 3, 4


def write_tokenizer_files(metadata: dict[str, Any], directory: Path) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``.

    Raises:
        SourceError: the tokenizer is of a kind whose splitting rules are not known here.
    """
    kind = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != ("gpt2", "smollm"):
        raise SourceError(f"a GGUF tokenizer of kind {kind} is not known; use the model's original directory.")

    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: list[int] = metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for token, type_ in zip(tokens, types, strict=True):
        if type_ in (_CONTROL, _USER_DEFINED):
            tokenizer.add_tokens([AddedToken(token, special=type_ == _CONTROL, normalized=False)])
    tokenizer.save(str(directory / "tokenizer.json"))

    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {key: tokens[metadata[f"tokenizer.ggml.{name}_token_id"]] for key, name in named.items()}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
        **special,
    }
    write_json(directory / "tokenizer_config.json", config)
    (directory / "chat_template.jinja").write_text(metadata["tokenizer.chat_template"], encoding="utf-8")
