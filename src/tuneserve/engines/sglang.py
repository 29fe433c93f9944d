"""SGLang: how its server is started and when it can serve a source.

Written after the documentation and sources of SGLang 0.5.23 (https://docs.sglang.io): ``launch_server``, its native
``/generate`` and ``/health``. It was not run here, for want of a GPU.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from secrets import token_hex

from tuneserve.engines import environments
from tuneserve.engines._checks import (
    check_dtype,
    gpu_problems,
    lora_problems,
    quantisation,
    refuse_own_arguments,
    version_numbers,
)
from tuneserve.engines._http import EngineClient
from tuneserve.engines._sglang_client import SglangEngine
from tuneserve.engines.contract import Engine
from tuneserve.engines.kind import NamedAdapter, Preflight, ServeOptions
from tuneserve.engines.supervised import Launch, SupervisedServer
from tuneserve.errors import EngineError
from tuneserve.sources import ResolvedSource
from tuneserve.text import open_tokenizer

# The first whose options and answers are as they are used here.
_OLDEST = (0, 5, 10)
_MERGED = "merged_16bit"
# By quantization_config's quant_method; bitsandbytes and GGUF only on one GPU.
_LOADED = ("awq", "bitsandbytes", "compressed-tensors", "fbgemm_fp8", "fp8", "gptq", "modelopt", "mxfp4")
# Its scaling is alpha / r of the whole adapter, whatever else the configuration says (sglang/srt/lora/lora.py).
_LACKING = {
    "use_dora": "DoRA",
    "use_rslora": "rsLoRA scaling",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "lora_bias": "lora_bias",
    "bias": "trained biases",
    "modules_to_save": "modules_to_save",
    "trained_tokens": "trained tokens",
    "target_parameters": "target_parameters",
    "fan_in_fan_out": "fan_in_fan_out",
    "residual": "PiSSA or OLoRA base",
}
_OURS = (
    "--model-path", "--model", "--tokenizer-path", "--host", "--port", "--served-model-name", "--api-key",
    "--lora-paths", "--tp-size", "--tensor-parallel-size", "--tp", "--context-length", "--max-running-requests",
    "--dtype", "--skip-tokenizer-init", "--incremental-streaming-output", "--trust-remote-code",
)  # fmt: skip


class Sglang:
    """SGLang in an environment of its own."""

    name = "sglang"

    def check(self, source: ResolvedSource, adapters: Sequence[NamedAdapter], options: ServeOptions) -> Preflight:
        """Say whether it can serve ``source`` with ``adapters`` unmerged.

        Raises:
            InputError: an argument is one that tuneserve gives itself.
            EngineError: SGLang is not installed, or too old.
        """
        check_dtype(options)
        refuse_own_arguments(options, _OURS)
        version = environments.require("sglang", options.program).version
        if version_numbers(version) < _OLDEST:
            oldest = ".".join(map(str, _OLDEST))
            raise EngineError(f"SGLang {version} is older than {oldest}, the first that this works with; update it.")
        problems, export = gpu_problems(), None
        if source.adapter_dir is not None:
            problems.append("it serves an adapter only beside its base, under a name of its own")
            export = _MERGED
        found = quantisation(source)
        method = str(found.get("quant_method")) if found else ""
        if found and method not in _LOADED:
            problems.append(f"it does not load weights quantised by {method[:40]}")
            export = _MERGED
        if options.tensor_parallel > 1 and (method == "bitsandbytes" or source.weights_file is not None):
            problems.append("it does not divide bitsandbytes or GGUF weights among GPUs")
            export = _MERGED
        unfit = [problem for adapter in adapters for problem in lora_problems(adapter, _LACKING)]
        if unfit:
            problems += [*unfit, "merged, such an adapter can be served alone"]
            export = None
        if gpu_problems():
            export = None
        notes = ("adapters that are not merged make it slower",) if adapters else ()
        return Preflight(tuple(problems), export, notes=notes)

    async def start(
        self, source: ResolvedSource, adapters: Sequence[NamedAdapter], options: ServeOptions, name: str
    ) -> Engine:
        """Start its server and wait until it takes requests.

        Raises:
            EngineError: it did not start; the message has its last lines.
        """
        environment = environments.require("sglang", options.program)
        key = token_hex(16)
        headers = {"Authorization": f"Bearer {key}"}
        server = await SupervisedServer.start(
            Launch(
                engine="SGLang",
                command=lambda port: _command(environment.python, port, key, source, adapters, options, name),
                ready="/health",
                headers=headers,
                environment=_environment(),
                log=options.logs / "sglang.log" if options.logs else None,
            )
        )
        client = EngineClient("SGLang", server.address, headers)
        try:
            tokenizer = open_tokenizer(source.tokenizer_dir, source.model_dir)
            seeded = "--enable-deterministic-inference" in options.arguments
            return await SglangEngine.of(server, client, environment.version, adapters, tokenizer, seeded=seeded)
        except BaseException:
            await client.close()
            await server.close()
            raise


def _command(
    python: Path,
    port: int,
    key: str,
    source: ResolvedSource,
    adapters: Sequence[NamedAdapter],
    options: ServeOptions,
    name: str,
) -> list[str | Path]:
    command: list[str | Path] = [
        python, "-m", "sglang.launch_server",
        "--model-path", source.weights_file or source.model_dir,
        "--tokenizer-path", source.tokenizer_dir,
        "--served-model-name", name,
        "--host", "127.0.0.1", "--port", str(port), "--api-key", key,
        "--dtype", options.dtype,
        "--tp-size", str(options.tensor_parallel),
        "--incremental-streaming-output",
        "--sampling-defaults", "openai",
        "--enable-metrics",
    ]  # fmt: skip
    if options.context_length is not None:
        command += ["--context-length", str(options.context_length)]
    if options.max_running is not None:
        command += ["--max-running-requests", str(options.max_running)]
    if adapters:
        command += ["--lora-paths", *(f"{adapter.name}={adapter.directory}" for adapter in adapters)]
    return [*command, *options.arguments]


def _environment() -> dict[str, str]:
    # Log-probabilities of the model itself, before temperature and filters.
    return {**os.environ, "SGLANG_RETURN_ORIGINAL_LOGPROB": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
