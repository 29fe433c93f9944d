"""Which weights stand in for quantised ones: these, dequantised, or those of the 16-bit model they were made from.

An adapter trained over a quantised base has learned to correct the dequantised weights, rounding included: over those
it is the model that was trained, and they are at hand offline. Unsloth's own merge takes the 16-bit weights, which
often answer as well but make another model; ``16bit`` does the same here. What no file records is that a 16-bit base
was loaded in 4 bits for training (QLoRA): such an adapter names the 16-bit model and is applied to that.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tuneserve.checkpoint.quantised import quantisation_method
from tuneserve.errors import SourceError
from tuneserve.sources import _hub

BasePrecision = Literal["16bit", "trained"]
Locate = Callable[[str], Path]

_QUANTISED = re.compile(r"(?P<stem>.+?)(?:(?:-unsloth)?-bnb-[48]bit|-FP8(?:-Block|-Dynamic)?)", re.IGNORECASE)
# gpt-oss is released in MXFP4; whatever it was quantised to, its 16-bit form has a name of its own.
_GPT_OSS = re.compile(r"(?:unsloth|openai)/(?P<model>gpt-oss-\d+b)(?:(?:-unsloth)?-bnb-4bit)?", re.IGNORECASE)
# Models that Unsloth has quantised but not copied in 16 bits, by how their names begin and where the original is.
_ORIGINALS = (
    (re.compile(r"codellama-(13|34)b"), r"codellama/CodeLlama-\1b-hf"),
    (re.compile(r"solar-10.7b"), "upstage/SOLAR-10.7B-v1.0"),
    (re.compile(r"llama-3-70b(.*)"), r"meta-llama/Meta-Llama-3-70B\1"),
    (re.compile(r"(Meta-Llama-.*)"), r"meta-llama/\1"),
    (re.compile(r"(Mistral-Large-.*)"), r"mistralai/\1"),
    (re.compile(r"(c4ai-.*)"), r"CohereForAI/\1"),
    (re.compile(r"(Hermes-.*)"), r"NousResearch/\1"),
    (re.compile(r"Pixtral-12B-2409-Base"), "unsloth/Pixtral-12B-Base-2409"),
)
_SIZES = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@dataclass(frozen=True)
class Choice:
    """The directory whose weights are used; ``precision`` is None where nothing was quantised and nothing asked for."""

    model_dir: Path
    precision: BasePrecision | None
    reason: str | None


def sixteen_bit_names(named: str) -> tuple[str, ...]:
    """Return what the 16-bit model that ``named`` was made from is called, the likeliest first.

    A local directory has its sibling without the suffix, a hub id the same name of the same owner, by Unsloth's naming.
    Empty where the name does not end in what quantised models end in.
    """
    if (path := _local(named)) is not None:
        match = _QUANTISED.fullmatch(path.name)
        return (str(path.with_name(match["stem"])),) if match else ()
    if (hub_id := _hub.parse(named)) is None:
        return ()
    if match := _GPT_OSS.fullmatch(hub_id.repo):
        return (f"unsloth/{match['model']}-BF16",)
    if not (match := _QUANTISED.fullmatch(hub_id.repo)):
        return ()
    names = [match["stem"]]
    owner, _, model = match["stem"].partition("/")
    if owner == "unsloth":
        names += [found.expand(original) for start, original in _ORIGINALS if (found := start.fullmatch(model))]
    return tuple(names)


def check_precision(wanted: str | None) -> None:
    """Raise SourceError unless ``wanted`` is None or a :data:`BasePrecision`."""
    if wanted is not None and wanted not in get_args(BasePrecision):
        raise SourceError(f"the base precision {wanted[:40]!r} is unknown; use 16bit or trained.")


def sixteen_bit_by_name(named: str, locate: Locate) -> Choice | None:
    """Return the 16-bit model of a hub id whose name says that it is quantised, without downloading the quantised one.

    Raises:
        SourceError: the name says so, but no 16-bit model is to be had.
    """
    if _local(named) is not None or not (names := sixteen_bit_names(named)):
        return None
    return _sixteen_bit(named, names, None, locate)


def choose(named: str, directory: Path, wanted: BasePrecision | None, locate: Locate, *, trained_on: bool) -> Choice:
    """Choose the weights for ``named``, which is in ``directory``.

    Args:
        named: the model as it was named.
        directory: where it is.
        wanted: None chooses ``trained``.
        locate: finds a directory by its path or hub id, or raises SourceError.
        trained_on: whether an adapter was trained over it; else it is a whole model.

    Raises:
        SourceError: ``16bit`` is wanted, and no 16-bit model is to be had.
        CheckpointError: its config says that it is quantised, but not how.
    """
    from tuneserve.sources._resolve import MODEL_CONFIG, read_config

    config = read_config(directory / MODEL_CONFIG)
    method = quantisation_method(config)
    if method is None:
        reason = f"{named} is not quantised; its weights are used as they are." if wanted else None
        return Choice(directory, wanted, reason)
    if wanted == "16bit":
        return _sixteen_bit(named, sixteen_bit_names(named), config, locate)
    use = "the adapter, trained over them, is applied to its dequantised weights" if trained_on else "it is dequantised"
    return Choice(
        directory,
        "trained",
        f"{named} is quantised ({method[:40]}), and {use}; --base-precision 16bit takes the 16-bit model instead.",
    )


def _sixteen_bit(named: str, names: tuple[str, ...], quantised: Mapping[str, Any] | None, locate: Locate) -> Choice:
    from tuneserve.sources._resolve import MODEL_CONFIG, read_config

    if not names:
        raise SourceError(
            f"{named} is quantised, and its name does not tell the 16-bit model it was made from; "
            "name that model itself, or use --base-precision trained."
        )
    problems = []
    for name in names:
        try:
            directory = locate(name)
            config = read_config(directory / MODEL_CONFIG)
        except SourceError as error:
            problems.append(str(error).partition(";")[0].rstrip("."))
            continue
        if quantisation_method(config) is not None:
            problems.append(f"{name} is quantised itself")
        elif quantised is not None and _sizes(config) != _sizes(quantised):
            problems.append(f"{name} is another model")
        else:
            return Choice(
                directory,
                "16bit",
                f"the weights of {name} stand in for the quantised ones of {named}, "
                "from which they differ by the error of quantisation.",
            )
    raise SourceError(
        f"no 16-bit model was found for the quantised {named} ({', and '.join(problems)}); "
        "name that model itself, or use --base-precision trained."
    )


def _local(named: str) -> Path | None:
    try:
        path = Path(named).expanduser().absolute()
        return path if path.is_dir() else None
    except (OSError, RuntimeError):
        return None


def _sizes(config: Mapping[str, Any]) -> list[Any]:
    text = config.get("text_config")
    return [config.get(key, text.get(key) if isinstance(text, dict) else None) for key in _SIZES]
