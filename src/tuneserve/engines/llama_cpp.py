"""llama.cpp: a GGUF file, and adapters as GGUF files beside it, served by its own HTTP server."""

import asyncio
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneserve.checkpoint import GgufFile, open_gguf
from tuneserve.engines._http import EngineClient
from tuneserve.engines._llama_cpp_engine import LlamaCppEngine
from tuneserve.engines._llama_cpp_grammar import gbnf_text, llguidance_text
from tuneserve.engines._llama_cpp_pieces import Pieces
from tuneserve.engines._llama_cpp_program import Program, Settings, child_environment, find_program
from tuneserve.engines._llama_cpp_request import LACKS, LACKS_WITHOUT_LLGUIDANCE
from tuneserve.engines.contract import Engine, EngineInfo
from tuneserve.engines.kind import NamedAdapter, Preflight, ServeOptions
from tuneserve.engines.supervised import Launch, SupervisedServer
from tuneserve.errors import CheckpointError, EngineError, InputError
from tuneserve.sources import ResolvedSource, read_config
from tuneserve.spec import GGUF_ARCHITECTURES

_EXPORT = "gguf:q8_0"
_ADAPTER_EXPORT = "gguf-lora"
_ADAPTER_FILE = "adapter.gguf"
_DEFAULT_CONTEXT = 8192
_DEFAULT_RUNNING = 4


class LlamaCpp:
    """llama.cpp as one of the engines."""

    name = "llama.cpp"

    def check(self, source: ResolvedSource, adapters: Sequence[NamedAdapter], options: ServeOptions) -> Preflight:
        """Say whether it can serve ``source``, which must be a GGUF file, with ``adapters``, which must be such too.

        Raises:
            InputError: an option is not one that it has.
            EngineError: it is not installed.
        """
        program = find_program(options)
        if options.dtype != "auto":
            raise InputError("llama.cpp computes on weights as they are stored; leave --dtype out.")
        if options.max_running is not None and options.max_running < 1:
            raise InputError(f"{options.max_running} sequences at once are too few; choose 1 or more.")
        problems, export = _problems(source, options)
        unlike = [adapter.name for adapter in adapters if not _is_gguf_adapter(adapter.directory)]
        problems += [f"it loads adapters as GGUF files, and {name} is not one" for name in unlike]
        return Preflight(
            problems=tuple(problems),
            export=export,
            adapter_export=_ADAPTER_EXPORT if unlike else None,
            notes=() if program.version is None else ("the installed llama.cpp computes on the processor",),
        )

    async def start(
        self, source: ResolvedSource, adapters: Sequence[NamedAdapter], options: ServeOptions, name: str
    ) -> Engine:
        """Start it under supervision and wait until it has loaded the model.

        Raises:
            InputError: the source cannot be served as it is.
            EngineError: it did not start; the message has its last lines.
        """
        found = self.check(source, adapters, options)
        if found.problems:
            raise InputError(f"llama.cpp cannot serve {name}: {'; '.join(found.problems)}.")
        assert source.weights_file is not None, "checked"
        program = find_program(options)
        file, pieces, devices = await asyncio.to_thread(_prepare, source.weights_file, program)
        settings = Settings(
            model=source.weights_file.absolute(),
            adapters=tuple((adapter.directory / _ADAPTER_FILE).absolute() for adapter in adapters),
            context_length=options.context_length or min(_DEFAULT_CONTEXT, _context_length(file)),
            max_running=options.max_running or _DEFAULT_RUNNING,
            arguments=options.arguments,
        )
        key = secrets.token_urlsafe(32)
        headers = {"Authorization": f"Bearer {key}"}
        server = await SupervisedServer.start(
            Launch(
                engine=self.name,
                command=lambda port: program.command(settings, port, devices),
                headers=headers,
                environment=child_environment(key),
                log=None if options.logs is None else options.logs / "llama.cpp.log",
            )
        )
        client = EngineClient(self.name, server.address, headers)
        try:
            props = await client.json("GET", "/props")
            info = EngineInfo(
                engine=self.name,
                version=program.version or str(props["build_info"]),
                context_length=min(settings.context_length, int(props["default_generation_settings"]["n_ctx"])),
                vocab_size=len(pieces),
                dtype=_dtype(file),
                device=devices[0] if devices else "cpu",
                weight_bytes=sum(tensor.nbytes for tensor in file.tensors.values()),
                max_running=settings.max_running,
                lacks=LACKS if program.has_llguidance else LACKS_WITHOUT_LLGUIDANCE,
                adapters=tuple(adapter.name for adapter in adapters),
            )
        except BaseException as error:
            await client.close()
            await server.close()
            if isinstance(error, KeyError | TypeError | ValueError):
                raise EngineError("this llama-server is too old or too new to be understood; use another.") from None
            raise
        return LlamaCppEngine(server, client, info, pieces, llguidance_text if program.has_llguidance else gbnf_text)


def _problems(source: ResolvedSource, options: ServeOptions) -> tuple[list[str], str | None]:
    problems = ["it has no tensor parallelism"] if options.tensor_parallel != 1 else []
    export: str | None = None
    if source.weights_file is None or source.adapter_dir is not None:
        family = _family(read_config(source.model_dir / "config.json"))
        if family in GGUF_ARCHITECTURES:
            export = _EXPORT
            problems.append(
                "it loads a GGUF file, and the weights are in safetensors"
                if source.weights_file is None
                else "it loads an adapter beside the model only by a name"
            )
        else:
            problems.append(f"it loads GGUF files, which models of the {family[:40]!r} family cannot be written as")
    elif options.context_length is not None:
        longest = _context_length(open_gguf(source.weights_file))
        if not 2 <= options.context_length <= longest:
            problems.append(f"a context of {options.context_length} is outside 2 to the model's {longest} tokens")
    return problems, export


def _prepare(path: Path, program: Program) -> tuple[GgufFile, Pieces, list[str]]:
    file = open_gguf(path)
    return file, Pieces(file), program.devices()


def _family(config: dict[str, Any]) -> str:
    text = config.get("text_config")
    return str((text if isinstance(text, dict) else config).get("model_type"))


def _context_length(file: GgufFile) -> int:
    length = file.metadata.get(f"{file.metadata.get('general.architecture')}.context_length")
    if type(length) is not int:
        raise CheckpointError(f"{file.paths[0]} does not say how long its context is; export the model again.")
    return length


def _dtype(file: GgufFile) -> str:
    """Return the type that most of the weights' bytes are in."""
    sizes: dict[str, int] = {}
    for tensor in file.tensors.values():
        sizes[tensor.kind] = sizes.get(tensor.kind, 0) + tensor.nbytes
    return max(sizes, key=lambda kind: sizes[kind], default="none").lower()


def _is_gguf_adapter(directory: Path) -> bool:
    try:
        return open_gguf(directory / _ADAPTER_FILE).metadata.get("general.type") == "adapter"
    except CheckpointError:
        return False
