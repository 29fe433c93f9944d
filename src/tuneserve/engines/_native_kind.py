"""What is known of the native engine before it runs."""

from collections.abc import Sequence

from tuneserve.adapters import read_deltas
from tuneserve.engines._checks import check_dtype
from tuneserve.engines.contract import Engine
from tuneserve.engines.kind import CPU_STEPS, WEIGHTS, NamedAdapter, NativeOptions, Preflight, ServeOptions
from tuneserve.errors import InputError, SpecError
from tuneserve.sources import ResolvedSource, open_files, read_config
from tuneserve.spec import Computation, ModelSpec, computation_of, reasons_against_split


class Native:
    """The engine of this package, in a process of its own."""

    name = "native"

    def check(self, source: ResolvedSource, adapters: Sequence[NamedAdapter], options: ServeOptions) -> Preflight:
        """Say whether it can serve ``source``, with an adapter that is part of it folded in, or ``adapters`` unmerged.

        Raises:
            InputError: it does not have an option.
        """
        if options.program is not None or options.arguments:
            raise InputError(
                "the native engine takes no program or arguments of its own; leave --engine-python, --engine-binary "
                "and --engine-arg out."
            )
        check_dtype(options)
        _check(options.native)
        problems = []
        config = read_config(source.model_dir / "config.json")
        try:
            # However weights are stored, the engine reads them.
            computation = computation_of({key: value for key, value in config.items() if key != "quantization_config"})
        except SpecError as error:
            problems.append(str(error).rstrip("."))
        else:
            problems += _adapter_problems(source, adapters, computation.spec)
            if options.tensor_parallel != 1:
                problems += _parallel_problems(computation, adapters, options.tensor_parallel)
        return Preflight(tuple(problems))

    async def start(
        self,
        source: ResolvedSource,
        adapters: Sequence[NamedAdapter],
        options: ServeOptions,
        name: str,  # noqa: ARG002
    ) -> Engine:
        """Start its process and wait until it has loaded the model; it is started again when it dies.

        Raises:
            InputError: the model cannot be loaded as it is.
            EngineError: the process died.
        """
        from tuneserve.engines._restarted import RestartedEngine
        from tuneserve.engines.native import NativeEngine

        async def start() -> NativeEngine:
            return await NativeEngine.start(
                source,
                context_length=options.context_length,
                max_running=options.max_running,
                dtype=options.dtype,
                tensor_parallel=options.tensor_parallel,
                native=options.native,
            )

        engine = await RestartedEngine.start(start)
        try:
            for adapter in adapters:
                await engine.load_adapter(adapter.name, adapter.directory)
        except BaseException:
            await engine.close()
            raise
        return engine


def _parallel_problems(computation: Computation, adapters: Sequence[NamedAdapter], size: int) -> list[str]:
    """Return why devices cannot divide a model."""
    problems = ["with tensor parallelism it does not compute adapters unmerged"] if adapters else []
    if computation.spec is None:
        return [*problems, f"what runs through Transformers runs on one device ({computation.reason})"]
    return problems + reasons_against_split(computation.spec, size)


def _adapter_problems(source: ResolvedSource, adapters: Sequence[NamedAdapter], spec: ModelSpec | None) -> list[str]:
    """Return why adapters cannot run unmerged, from headers."""
    if not adapters:
        return []
    if spec is None:
        return ["what runs through Transformers does not compute adapters unmerged"]
    base, config = open_files(source.model_dir, source.weights_file)
    problems = []
    for adapter in adapters:
        try:
            read_deltas(adapter.directory, base, config, spec)
        except InputError as error:
            problems.append(f"the adapter {adapter.name} cannot be served ({str(error).rstrip('.')})")
    return problems


def _check(options: NativeOptions) -> None:
    for name, given, known in (("CPU step", options.cpu_step, CPU_STEPS), ("weights", options.weights, WEIGHTS)):
        if given not in known:
            raise InputError(f"the {name} {given!r} is not known; choose {', '.join(known)}.")
