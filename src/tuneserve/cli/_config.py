"""What ``tuneserve serve`` serves, as a TOML file; its keys are the flags, with underscores.

::

    port = 8000

    [[model]]
    source = "org/base"
    max_running = 32
    [model.adapters]
    support = "outputs/support"

    [[model]]
    source = "outputs/support"
    name = "support-merged"
    engine = "llama.cpp"

Relative paths start where the command is run, as they do in flags.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from tuneserve.errors import InputError

_MAX_BYTES = 1 << 20
_Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_Natural = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_MAX_DRAIN_SECONDS = 86_400
_SURROGATE = re.compile("[\ud800-\udfff]")


class ModelConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model: where it is, what runs it, and its adapters by the names that requests give."""

    source: str
    name: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET
    base: str | UnsetType = UNSET
    engine: str = "auto"
    engine_python: Path | UnsetType = UNSET
    engine_binary: Path | UnsetType = UNSET
    engine_args: list[str] = []
    tensor_parallel: _Count = 1
    verify: bool = True
    context: _Count | UnsetType = UNSET
    max_running: _Count | UnsetType = UNSET
    dtype: str = "auto"
    weights: str = "auto"
    cpu_step: str = "auto"
    cache_tokens: _Count | UnsetType = UNSET
    prefix_cache: bool = True
    speculation: Annotated[int, Meta(ge=0, le=15)] = 0
    adapters: dict[str, str] = {}


class ServerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server and its models; requests that name no model mean the first."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    allowed_hosts: list[str] = []
    drain_timeout: Annotated[float, Meta(ge=0, le=_MAX_DRAIN_SECONDS)] = 30.0
    api_key_file: Path | UnsetType = UNSET
    max_queue: _Natural = 1024
    max_body_mib: Annotated[int, Meta(ge=1, le=1024)] = 8
    cors_origins: list[str] = []
    tls_cert: Path | UnsetType = UNSET
    tls_key: Path | UnsetType = UNSET
    log_format: str = "text"
    log_prompts: bool = False
    otlp_endpoint: str | UnsetType = UNSET
    adapter_dirs: list[Path] = []
    lenient: bool = False
    model: Annotated[list[ModelConfig], Meta(min_length=1)]


def read_config(path: Path) -> ServerConfig:
    """Read a file.

    Raises:
        InputError: it cannot be read, or has a key or a value that is not known, named with its place.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise InputError(f"{path} is larger than 1 MiB, which no configuration is; name another file.")
        return msgspec.toml.decode(content, type=ServerConfig, dec_hook=_path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its permissions.") from None
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InputError(f"{path} cannot be used ({error}); see 'tuneserve serve --help' for what there is.") from None


def to_config(values: dict[str, Any]) -> ServerConfig:
    """Check values as a file would have them.

    Raises:
        InputError: one is not known, or out of its range.
    """
    try:
        return msgspec.convert(values, ServerConfig)
    except msgspec.ValidationError as error:
        raise InputError(f"the options cannot be used ({error}); see 'tuneserve serve --help'.") from None


def to_toml(config: ServerConfig) -> str:
    """Return the file that says the same, with every default; paths are absolute, so that it holds anywhere.

    Raises:
        InputError: a name or a path is not Unicode.
    """
    server: dict[str, Any] = msgspec.to_builtins(config, enc_hook=_absolute)
    models = server.pop("model")
    lines = _lines(server)
    for model in models:
        adapters = model.pop("adapters")
        model["source"] = _located(model["source"])
        if "base" in model:
            model["base"] = _located(model["base"])
        lines += ["", "[[model]]", *_lines(model)]
        if adapters:
            lines += ["[model.adapters]", *_lines({name: _located(path) for name, path in adapters.items()})]
    text = "\n".join(lines) + "\n"
    if _SURROGATE.search(text):
        raise InputError("a name or a path is not Unicode, as which alone a file can say it; rename it.")
    return text


def _path(kind: type, value: object) -> Path:
    if kind is not Path or not isinstance(value, str):
        raise ValueError(f"expected a path, got {value!r:.40}")
    return Path(value)


def _absolute(path: object) -> str:
    assert isinstance(path, Path)
    return str(path.absolute())


def _located(source: str) -> str:
    """Return a source that is a file of this machine as an absolute path, another as it is."""
    return str(Path(source).absolute()) if Path(source).exists() else source


def _lines(values: dict[str, Any]) -> list[str]:
    return [f"{_key(name)} = {_value(value)}" for name, value in values.items()]


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else _value(name)


def _value(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    # A basic string of TOML has the escapes of JSON, and DEL has to be escaped as well.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
