"""One way to serve: a method, an engine and its settings, weighed; with all the reasons against it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from tuneserve.hardware import Machine
from tuneserve.planner._fit import Fit, fit
from tuneserve.planner._model import PlannedModel
from tuneserve.planner._speed import Load, Speed, estimate
from tuneserve.planner._weights import Scales
from tuneserve.spec import computation_of, reasons_against_split

Objective = Literal["throughput", "latency", "memory", "simple"]
# Below this a step is bound by launches, not by reading, so that fewer bytes or more GPUs gain nothing.
WORTH_SECONDS = 1e-3
_MOST_AT_ONCE = 64
FP8, AMPERE, TURING = (8, 9), (8, 0), (7, 5)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is wanted: ``context`` tokens per sequence, ``concurrency`` sequences at once, ``adapters`` on one base."""

    objective: Objective
    context: int
    concurrency: int
    adapters: int


@dataclass(frozen=True, kw_only=True)
class Option:
    """``problems`` are all the reasons why it cannot be; without any, ``fit`` and ``speed`` are those of one replica.

    ``weights`` are the bytes of its files. A replica is spread over ``tensor`` GPUs of ``pipeline`` machines.
    """

    method: str
    engine: str
    weights: int | None = None
    tensor: int = 1
    pipeline: int = 1
    replicas: int = 1
    fit: Fit | None = None
    speed: Speed | None = None
    problems: tuple[str, ...] = ()

    @property
    def sequences(self) -> int:
        """How many sequences of the wished context are held at once by all replicas."""
        return self.fit.sequences * self.replicas if self.fit else 0

    @property
    def name(self) -> str:
        """The method and the engine."""
        return f"{self.method} on {self.engine}"


class Weigher:
    """Weighs options for one model, machine and wish."""

    def __init__(self, model: PlannedModel, machine: Machine, wish: Wish) -> None:
        self.model, self.machine, self.wish = model, machine, wish
        self.scales = Scales(model)

    def weigh(self, method: str, engine: str) -> Option:
        """Return the best settings of an option, or what speaks against it."""
        problems = list(self._problems(method, engine))
        weighed = self.scales.weigh(method)
        if weighed.problem is not None:
            problems.append(weighed.problem)
        if problems or weighed.nbytes is None:
            return Option(method=method, engine=engine, weights=weighed.nbytes, problems=tuple(problems))
        # What the native engine holds is in 16 bits, whatever it is read from.
        nbytes = 2 * self.model.parameters if engine == "native" else weighed.nbytes
        tried = [self._sized(method, engine, nbytes, *split) for split in self._splits(method, engine)]
        fitting = [option for option in tried if option.sequences]
        if not fitting:
            best = min(tried, key=lambda option: option.fit.missing if option.fit else 0)
            assert best.fit is not None
            needed, usable = (best.fit.missing + best.fit.usable) / 1e9, best.fit.usable / 1e9
            where = "each GPU" if self.machine.gpus else "memory"
            problem = f"one sequence of {self.wish.context:,} tokens takes {needed:.1f} GB of the {usable:.1f} GB that it can use of {where}"  # noqa: E501
            return Option(method=method, engine=engine, weights=nbytes, fit=best.fit, problems=(problem,))
        return self._best(fitting)

    def _best(self, fitting: list[Option]) -> Option:
        if self.wish.objective == "latency":
            worth = [option for option in fitting if self._read_seconds(option) >= WORTH_SECONDS]
            return max(worth, key=lambda option: option.tensor) if worth else fitting[0]
        enough = [option for option in fitting if self.is_enough(option)]
        return enough[0] if enough else max(fitting, key=lambda option: option.sequences)

    def glance(self, method: str, engine: str) -> Option:
        """Return an option with the reasons against it that are known without weighing it."""
        return Option(method=method, engine=engine, problems=tuple(self._problems(method, engine)))

    def is_enough(self, option: Option) -> bool:
        """Return whether it holds half the wished sequences at full length: on average they are half as long."""
        return 2 * option.sequences >= self.wish.concurrency

    def _read_seconds(self, option: Option) -> float:
        assert option.fit is not None
        return self.read_seconds(option.fit.weights)

    def read_seconds(self, nbytes: int) -> float:
        """Return how long one device reads so many bytes; infinite where its bandwidth is not known."""
        bandwidth = self.machine.gpus[0].bandwidth if self.machine.gpus else self.machine.bandwidth
        return nbytes / bandwidth if bandwidth else float("inf")

    def _splits(self, method: str, engine: str) -> list[tuple[int, int]]:
        """Return the ways to divide the weights: GPUs of a machine, machines; the least division first."""
        if engine == "native" and method != "lora" and self.machine.kind == "nvidia":
            return self._native_splits()
        if engine != "vllm" or not self.machine.gpus:
            return [(1, 1)]
        count, shape = len(self.machine.gpus), self.model.cache
        tensors = [
            tensor
            for tensor in range(1, count + 1)
            if count % tensor == 0
            and shape.heads % tensor == 0
            and (shape.kv_heads % tensor == 0 or tensor % shape.kv_heads == 0)
        ]
        pipelines = [self.machine.count] if 1 < self.machine.count <= shape.layers else []
        return [(tensor, 1) for tensor in tensors] + [(tensors[-1], pipeline) for pipeline in pipelines]

    def _native_splits(self) -> list[tuple[int, int]]:
        config = {key: value for key, value in self.model.config.items() if key != "quantization_config"}
        spec, count = computation_of(config).spec, len(self.machine.gpus)
        divided = [tensor for tensor in range(2, count + 1) if count % tensor == 0]
        return [(1, 1), *((tensor, 1) for tensor in divided if spec and not reasons_against_split(spec, tensor))]

    def _sized(self, method: str, engine: str, nbytes: int, tensor: int, pipeline: int) -> Option:
        machine, wish = self.machine, self.wish
        found = fit(self.model, machine, engine, nbytes, wish.context, tensor, pipeline)
        devices = len(machine.gpus) if machine.gpus else 1
        several = engine in ("vllm", "llama.cpp", "native", "unsloth")
        replicas = max(1, devices // tensor) * machine.count // pipeline if several else 1
        bandwidth = machine.gpus[0].bandwidth if machine.gpus else machine.bandwidth
        load = None
        if bandwidth:
            cache = self.model.cache.bytes(wish.context // 2)
            load = Load(
                model=self.model,
                weights=nbytes,
                cache=cache,
                bandwidth=bandwidth * tensor,
                cores=machine.cores if machine.kind == "cpu" else None,
            )
        share = -(-wish.concurrency // replicas)
        together = max(1, min(share, found.sequences, _MOST_AT_ONCE if engine == "native" else share))
        speed = estimate(_measured_as(engine), machine.kind, _kind(method, engine), load, together)
        if tensor > 1 and speed.alone is not None:
            basis = f"{speed.basis}; divided evenly over {tensor} GPUs, which was not measured"
            speed = replace(speed, basis=basis)
        return Option(
            method=method, engine=engine, weights=self.scales.weigh(method).nbytes, tensor=tensor, pipeline=pipeline,
            replicas=replicas, fit=found, speed=speed,
        )  # fmt: skip

    def _problems(self, method: str, engine: str) -> Iterator[str]:
        model, machine = self.model, self.machine
        capability = machine.gpus[0].capability if machine.gpus else None
        if machine.kind == "mac" and engine not in ("llama.cpp", "ollama"):
            yield "it does not run on a Mac's GPU; llama.cpp and Ollama do"
        if engine == "unsloth" and machine.kind != "nvidia":
            yield "it needs an NVIDIA GPU"
        if engine == "native" and model.native_problem is not None:
            yield model.native_problem
        if engine == "native" and method == "merged_4bit":
            yield "it keeps weights of 4 bits as 16 in memory, so that nothing is saved"
        if engine == "vllm" and capability is not None and capability < TURING:
            yield f"current releases need compute capability 7.5, and the GPU has {_dotted(capability)}"
        if method == "fp8" and (capability is None or capability < FP8):
            has = f"the GPU has {_dotted(capability)}" if capability else "there is no NVIDIA GPU"
            yield f"fp8 arithmetic needs compute capability 8.9, and {has}"
        if method == "int4" and (capability is None or capability < AMPERE):
            has = f"the GPU has {_dotted(capability)}" if capability else "there is no NVIDIA GPU"
            yield f"its kernels in vLLM (Marlin) need compute capability 8.0, and {has}"
        if method == "lora" and engine == "native" and machine.gpus:
            yield "its kernels for NVIDIA GPUs do not compute adapters unmerged"
        if method == "lora":
            yield from (f"the adapter cannot stay unmerged: {reason}" for reason in model.unmerged_problems)


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _measured_as(engine: str) -> str:
    return "llama.cpp" if engine == "ollama" else engine


def _kind(method: str, engine: str) -> str:
    if method.startswith(("gguf", "ollama")):
        return "gguf"
    if engine == "native":
        # The adapter is folded in, or applied by one small product more.
        return "16bit"
    return {"merged_16bit": "16bit", "merged_4bit": "bitsandbytes"}.get(method, method)
