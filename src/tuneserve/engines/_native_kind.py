"""What is known of the native engine before it runs."""

from collections.abc import Sequence

from tuneserve.engines.contract import Engine
from tuneserve.engines.kind import NamedAdapter, Preflight, ServeOptions
from tuneserve.errors import InputError, SpecError
from tuneserve.sources import ResolvedSource, read_config
from tuneserve.spec import Computation, computation_of, reasons_against_split

_DTYPES = ("auto", "float32", "bfloat16", "float16")


class Native:
    """The engine of this package, in a process of its own."""

    name = "native"

    def check(self, source: ResolvedSource, adapters: Sequence[NamedAdapter], options: ServeOptions) -> Preflight:
        """Say whether it can serve ``source``; an adapter that is part of it is folded in while it loads.

        Raises:
            InputError: it does not have an option.
        """
        if options.program is not None or options.arguments:
            raise InputError(
                "the native engine takes no program or arguments of its own; leave --engine-python, --engine-binary "
                "and --engine-arg out."
            )
        if options.dtype not in _DTYPES:
            raise InputError(f"the dtype {options.dtype!r} is not known; choose {', '.join(_DTYPES)}.")
        problems = []
        if adapters:
            problems.append("it does not serve several adapters of one base yet")
        config = read_config(source.model_dir / "config.json")
        try:
            # Quantised weights are dequantised as they are read.
            known = computation_of({key: value for key, value in config.items() if key != "quantization_config"})
        except SpecError as error:
            problems.append(str(error).rstrip("."))
        else:
            problems += _parallel_problems(known, options.tensor_parallel)
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

        assert not adapters, "refused by the check"

        async def start() -> NativeEngine:
            return await NativeEngine.start(
                source,
                context_length=options.context_length,
                max_running=options.max_running,
                dtype=options.dtype,
                tensor_parallel=options.tensor_parallel,
            )

        return await RestartedEngine.start(start)


def _parallel_problems(known: Computation, size: int) -> list[str]:
    if size == 1:
        return []
    if known.spec is None:
        return [f"what runs through Transformers runs on one device ({known.reason})"]
    return reasons_against_split(known.spec, size)
