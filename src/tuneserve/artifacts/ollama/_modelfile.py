"""The Modelfile: https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx. Ollama itself was not run with it."""

from collections.abc import Iterator
from pathlib import Path

from tuneserve.artifacts.ollama._template import OllamaTemplate, translate
from tuneserve.checkpoint import open_gguf
from tuneserve.errors import TextError
from tuneserve.sources import adds_bos, read_config
from tuneserve.text import Tokenizer, open_chat_template, open_tokenizer

MODELFILE = "Modelfile"
_QUOTES = '"""'
_PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
# Ollama's own default, unlike everyone else's, is not 1.
_DEFAULTS = {"repetition_penalty": 1.0}
_MAX_STOPS = 16


def ollama_modelfile(
    weights: str,
    *,
    tokenizer_dir: Path,
    model_dir: Path,
    adds_bos: bool,
    adapter: str | None = None,
    context_length: int | None = None,
) -> str:
    """Return the Modelfile of a model.

    Template, system message and stops come from the model's own chat template and tokenizer, the parameters of sampling
    from its ``generation_config.json``. A model without a chat template completes texts.

    Args:
        weights: what to put behind FROM: a path relative to the Modelfile ("./model.gguf") or a model's name.
        tokenizer_dir: where the tokenizer and the chat template are.
        model_dir: where else to look for them, and where ``generation_config.json`` is.
        adds_bos: whether the GGUF file has llama.cpp add a BOS to prompts.
        adapter: the path of a GGUF adapter, likewise.
        context_length: tokens of the context, Ollama's default if None.

    Raises:
        TextError: the chat template cannot be written for Ollama, or a text cannot be quoted in a Modelfile.
        SourceError: ``generation_config.json`` is malformed.
    """
    template = open_chat_template(tokenizer_dir, model_dir)
    tokenizer = open_tokenizer(tokenizer_dir, model_dir)
    translated = translate(template, adds_bos=adds_bos) if template else None
    lines = [f"# {note}" for note in translated.notes] if translated else []
    lines.append(f"FROM {weights}")
    if adapter is not None:
        lines.append(f"ADAPTER {adapter}")
    lines.append(f"TEMPLATE {_quoted(translated.source if translated else '{{ .Prompt }}')}")
    if translated and translated.turns.default_system:
        lines.append(f"SYSTEM {_quoted(translated.turns.default_system)}")
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in _stops(tokenizer, translated)]
    lines += [f"PARAMETER {name} {value:g}" for name, value in _sampling(model_dir)]
    if context_length is not None:
        lines.append(f"PARAMETER num_ctx {context_length}")
    return "\n".join(lines) + "\n"


def write_modelfile(
    gguf: Path, *, tokenizer_dir: Path, model_dir: Path, adapter: Path | None = None, context_length: int | None = None
) -> Path:
    """Write ``Modelfile`` beside ``gguf`` (and ``adapter``, which is in the same directory), and return its path.

    Raises:
        InputError: as :func:`ollama_modelfile`; or the GGUF file is malformed.
        OSError: the directory cannot be written.
    """
    text = ollama_modelfile(
        f"./{gguf.name}",
        tokenizer_dir=tokenizer_dir,
        model_dir=model_dir,
        adds_bos=adds_bos(open_gguf(gguf)),
        adapter=f"./{adapter.name}" if adapter is not None else None,
        context_length=context_length,
    )
    path = gguf.with_name(MODELFILE)
    path.write_text(text, encoding="utf-8")
    return path


def _stops(tokenizer: Tokenizer, template: OllamaTemplate | None) -> list[str]:
    ends = [tokenizer.backend.id_to_token(index) for index in sorted(tokenizer.end_token_ids)]
    closing = template.turns.assistant_close.strip() if template else ""
    return [text for text in dict.fromkeys((*ends[:_MAX_STOPS], closing)) if text]


def _sampling(model_dir: Path) -> Iterator[tuple[str, float]]:
    path = model_dir / "generation_config.json"
    values = _DEFAULTS | (read_config(path) if path.is_file() else {})
    if values.get("do_sample") is False:
        values["temperature"] = 0
    for name, parameter in _PARAMETERS.items():
        value = values.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6:
            yield parameter, value


def _quoted(text: str) -> str:
    if _QUOTES in text or text.endswith('"'):
        raise TextError(f"{text[:60]!r} has quotes that a Modelfile cannot hold; write the Modelfile by hand.")
    return f"{_QUOTES}{text}{_QUOTES}" if "\n" in text or '"' in text else f'"{text}"'
