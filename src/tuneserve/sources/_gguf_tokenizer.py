"""The tokenizer and chat template in a GGUF file, as Hugging Face files."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from tuneserve.checkpoint import GgufFile, write_json
from tuneserve.errors import SourceError
from tuneserve.sources._gguf_bpe import begins_with_bos, bytelevel_tokenizer
from tuneserve.sources._gguf_spm import respelled, sentencepiece_tokenizer

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unknown": 0}
# As llama.cpp does: special tokens of Phi-3 swallow the space behind them, which a file does not say of a token.
_PHI3 = re.compile("phi-?3", re.IGNORECASE)
_NOT_STRIPPING = ("<unk>", "<s>", "<|endoftext|>")
_END_OF_TURN = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


def write_tokenizer_files(file: GgufFile, directory: Path, context_length: int) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and, if there is one, ``chat_template.jinja``.

    Raises:
        SourceError: the tokenizer is malformed, or of a kind that is not known here.
    """
    reader = _Reader(file)
    tokenizer = reader.guarded_tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
        **reader.special,
    }
    write_json(directory / "tokenizer_config.json", config)
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    tool_template = file.metadata.get("tokenizer.chat_template.tool_use")
    if isinstance(tool_template, str):
        (directory / "additional_chat_templates").mkdir()
        path = directory / "additional_chat_templates" / "tool_use.jinja"
        path.write_text(tool_template, encoding="utf-8")


def end_token_ids(metadata: Mapping[str, Any]) -> list[int]:
    """Return the ids that end an answer, that of EOS first."""
    ids = [metadata.get(key) for key in ("tokenizer.ggml.eos_token_id", *_END_OF_TURN)]
    return list(dict.fromkeys(index for index in ids if type(index) is int))


def adds_bos(file: GgufFile) -> bool:
    """Return whether llama.cpp puts a BOS before text that it tokenizes for the model in ``file``."""
    given = file.metadata.get("tokenizer.ggml.add_bos_token")
    if isinstance(given, bool):
        return given
    model = file.metadata.get("tokenizer.ggml.model")
    return model == "llama" or begins_with_bos(file.metadata.get("tokenizer.ggml.pre"), file.paths[0])


class _Reader:
    def __init__(self, file: GgufFile) -> None:
        self._file, self._metadata = file, file.metadata
        self._path = file.paths[0]
        self._model = self._metadata.get("tokenizer.ggml.model")
        self._pre = self._metadata.get("tokenizer.ggml.pre")
        if self._model not in ("gpt2", "llama"):
            raise SourceError(
                f"{self._path} has a tokenizer of the kind {str(self._model)[:40]!r}, which is not known here; "
                "use the model's original directory."
            )
        self._tokens: list[str] = self._list("tokens", str)
        self._types: list[int] = self._list("token_type", int, [_NORMAL] * len(self._tokens))
        if self._model == "llama":
            self._tokens = [respelled(token) for token in self._tokens]
        if not len(set(self._tokens)) == len(self._tokens) == len(self._types):
            raise self._malformed("tokens")
        ids = {name: self._metadata.get(f"tokenizer.ggml.{name}_token_id") for name in _NAMED.values()}
        if self._model == "llama":
            ids = _SENTENCEPIECE_IDS | {name: index for name, index in ids.items() if index is not None}
        if any(index is not None and not self._is_token(index) for index in ids.values()):
            raise self._malformed("token ids")
        self.special = {key: self._tokens[i] for key, name in _NAMED.items() if (i := ids.get(name)) is not None}

    def guarded_tokenizer(self) -> Tokenizer:
        try:
            return self._tokenizer()
        except SourceError:
            raise
        # The library raises plain Exception, and its panics derive from BaseException.
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                raise
            raise self._malformed(f"merges ({str(error)[:100]})") from None

    def _tokenizer(self) -> Tokenizer:
        if self._model == "gpt2":
            merges = self._list("merges", str)
            tokenizer = bytelevel_tokenizer(self._pre, self._tokens, merges, self._path)
        else:
            architecture = str(self._metadata.get("general.architecture"))
            tokenizer = sentencepiece_tokenizer(
                self._tokens,
                self._types,
                self._list("scores", float),
                space_prefix=self._flag("add_space_prefix", True),
                by_position=architecture.startswith("gemma"),
                unknown=self.special.get("unk_token"),
                path=self._path,
            )
        tokenizer.add_tokens(self._added())
        self._add_ends(tokenizer, bos=adds_bos(self._file), eos=self._flag("add_eos_token", False))
        return tokenizer

    def _added(self) -> list[AddedToken]:
        strips = bool(_PHI3.search(str(self._metadata.get("general.name")))) and self._model == "llama"
        return [
            AddedToken(token, special=kind == _CONTROL, normalized=False, rstrip=strips and token not in _NOT_STRIPPING)
            for token, kind in zip(self._tokens, self._types, strict=True)
            # Runs of spaces are merged as any other piece.
            if kind in (_CONTROL, _USER_DEFINED) and not (kind == _USER_DEFINED and not token.strip("\u2581"))
        ]

    def _add_ends(self, tokenizer: Tokenizer, *, bos: bool, eos: bool) -> None:
        before = [self.special["bos_token"]] if bos and "bos_token" in self.special else []
        after = [self.special["eos_token"]] if eos and "eos_token" in self.special else []
        if before or after:
            named = [(token, self._tokens.index(token)) for token in dict.fromkeys((*before, *after))]
            tokenizer.post_processor = processors.TemplateProcessing(
                single=[*before, "$A", *after],
                pair=[*before, "$A", *after, *(f"{token}:1" for token in before), "$B:1", *(f"{t}:1" for t in after)],
                special_tokens=named,
            )

    def _flag(self, name: str, default: bool) -> bool:
        value = self._metadata.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, bool):
            raise self._malformed(name)
        return value

    def _list(self, name: str, kind: type, default: list[Any] | None = None) -> list[Any]:
        values = self._metadata.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(values, list) or (values and type(values[0]) is not kind):
            raise self._malformed(name)
        if name == "scores" and len(values) != len(self._tokens):
            raise self._malformed(name)
        return values

    def _is_token(self, index: object) -> bool:
        return type(index) is int and 0 <= index < len(self._tokens)

    def _malformed(self, what: str) -> SourceError:
        return SourceError(f"{self._path} has malformed {what} in its tokenizer; download the file again.")
