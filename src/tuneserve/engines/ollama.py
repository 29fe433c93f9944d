"""Ollama: a model made of our GGUF file on a running server.

Written after the documentation and sources of Ollama 0.9 to 0.12 and later (docs/api.md, api/types.go); it was not run
here. Ollama takes text only: what that means for token ids is said in :mod:`tuneserve.engines._ollama_engine`.
"""

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tuneserve.checkpoint import open_gguf
from tuneserve.engines._http import EngineClient
from tuneserve.engines._ollama_engine import Facts, OllamaEngine
from tuneserve.engines._pieces import Pieces
from tuneserve.engines.contract import Engine
from tuneserve.engines.kind import NamedAdapter, Preflight, ServeOptions
from tuneserve.errors import EngineError, InputError
from tuneserve.sources import ResolvedSource, adds_bos, read_config
from tuneserve.text import open_tokenizer

_EXPORT = "ollama:q8_0"
_DEFAULT_CONTEXT = 8192
# The first that tells log-probabilities, and with them which tokens a text consists of.
_OLDEST = (0, 12, 11)
_PORTS = {"http": 80, "https": 443}
_DEFAULT_PORT = 11434
_BLOCK_BYTES = 1 << 20
_ASK_SECONDS = 5.0


class Ollama:
    """A running Ollama."""

    name = "ollama"

    def check(self, source: ResolvedSource, adapters: Sequence[NamedAdapter], options: ServeOptions) -> Preflight:
        """Say whether it can serve ``source``.

        Raises:
            InputError: it does not have an option.
            EngineError: no Ollama runs, or it is too old.
        """
        if options.program is not None or options.arguments:
            raise InputError(
                "Ollama runs already and takes no program or arguments; set OLLAMA_HOST to say where, and leave "
                "--engine-binary and --engine-arg out."
            )
        if options.dtype != "auto" or options.tensor_parallel != 1:
            raise InputError("Ollama decides on dtypes and GPUs itself; leave --dtype and --tensor-parallel out.")
        running_version()
        problems = []
        if adapters:
            problems.append("it serves no adapters by name; merge each into a model of its own")
        if source.adapter_dir is not None:
            problems.append("it takes a merged model")
        if source.weights_file is None:
            problems.append("it takes a GGUF file")
        return Preflight(tuple(problems), None if adapters or not problems else _EXPORT)

    async def start(
        self, source: ResolvedSource, adapters: Sequence[NamedAdapter], options: ServeOptions, name: str
    ) -> Engine:
        """Give it the model, and wait until that is loaded.

        Raises:
            InputError: the context is longer than the model's.
            EngineError: Ollama did not take it.
        """
        assert source.weights_file is not None and not adapters, "refused by the check"
        version = await asyncio.to_thread(running_version)
        file = source.weights_file
        trained = int(read_config(source.model_dir / "config.json").get("max_position_embeddings") or _DEFAULT_CONTEXT)
        context = options.context_length or min(trained, _DEFAULT_CONTEXT)
        if not 2 <= context <= trained:
            raise InputError(f"a context of {context} tokens was asked for; choose one from 2 to {trained}.")
        tokenizer = await asyncio.to_thread(open_tokenizer, source.tokenizer_dir, source.model_dir)
        pieces = await asyncio.to_thread(Pieces, tokenizer)
        digest = await asyncio.to_thread(_digest, file)
        facts = Facts(
            model=f"tuneserve/{re.sub(r'[^a-z0-9._-]+', '-', name.lower()).strip('.-_') or 'model'}:{digest[7:19]}",
            version=version,
            context_length=context,
            weight_bytes=file.stat().st_size,
            max_running=options.max_running or 1,
            adds_bos=adds_bos(open_gguf(file)),
        )
        client = EngineClient("Ollama", server_url)
        try:
            await _upload(file, digest)
            created = {"model": facts.model, "files": {file.name: digest}, "parameters": {"num_ctx": context}}
            async for line in client.lines("/api/create", created):
                if isinstance(line, dict) and "error" in line:
                    raise EngineError(f"Ollama did not take the model: {str(line['error'])[:500].rstrip('.')}.")
            return await OllamaEngine.of(client, facts, tokenizer, pieces)
        except BaseException:
            await client.close()
            raise


def server_url() -> str:
    """Return where Ollama listens: ``OLLAMA_HOST`` as Ollama itself reads it, else port 11434 of this machine.

    Raises:
        InputError: it is no address.
    """
    given = os.environ.get("OLLAMA_HOST", "").strip()
    scheme, found, rest = given.partition("://")
    scheme, rest = (scheme, rest) if found else ("http", given)
    place, _, path = rest.partition("/")
    try:
        parts = urlsplit(f"//{place}")
        host, port = parts.hostname or "", parts.port or (_PORTS[scheme] if found else _DEFAULT_PORT)
    except (ValueError, KeyError):
        raise InputError(f"OLLAMA_HOST is {given[:100]!r}, which is no address; set it like 127.0.0.1:11434.") from None
    # What a server is told to listen on, a client cannot always connect to.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{f'/{path}' if path else ''}".rstrip("/")


def running_version() -> str:
    """Return the version of the running Ollama.

    Raises:
        EngineError: none runs, or it is too old.
    """
    url = server_url()
    try:
        answer = httpx.get(f"{url}/api/version", timeout=_ASK_SECONDS, trust_env=False)
        version = str(answer.json()["version"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        raise EngineError(
            f"no Ollama answers at {url}; start it with 'ollama serve', or set OLLAMA_HOST to where it runs."
        ) from None
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    # A build from sources calls itself 0.0.0.
    if (0, 0, 0) < numbers < _OLDEST:
        raise EngineError(f"Ollama {version[:40]} is older than {'.'.join(map(str, _OLDEST))}; update it.")
    return version


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"


async def _upload(file: Path, digest: str) -> None:
    """Give Ollama the file, unless it has it already."""
    url = f"{server_url()}/api/blobs/{digest}"

    async def blocks() -> AsyncIterator[bytes]:
        with file.open("rb") as opened:
            while block := await asyncio.to_thread(opened.read, _BLOCK_BYTES):
                yield block

    try:
        async with httpx.AsyncClient(timeout=None, trust_env=False) as client:  # noqa: S113
            if (await client.head(url)).status_code == httpx.codes.OK:
                return
            headers = {"Content-Length": str(file.stat().st_size)}
            answer = await client.post(url, content=blocks(), headers=headers)
    except httpx.HTTPError as error:
        raise EngineError(f"Ollama broke off while it was given {file.name} ({error}); see its log.") from None
    if answer.status_code not in (httpx.codes.OK, httpx.codes.CREATED):
        raise EngineError(f"Ollama did not take {file.name} (status {answer.status_code}); see its log.")
