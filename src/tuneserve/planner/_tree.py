"""The decision tree: which ways to serve are tried, in which order, and why."""

from collections.abc import Callable
from dataclasses import dataclass

from tuneserve.planner._options import AMPERE, FP8, TURING, WORTH_SECONDS, Weigher

Candidate = tuple[str, str]
_LLAMA, _VLLM, _NATIVE = "llama.cpp", "vllm", "native"


@dataclass(frozen=True)
class Step:
    """A question, the branch that was taken, and why."""

    question: str
    answer: str
    because: str


@dataclass(frozen=True)
class Branch:
    """The steps that led to ``candidates``, the best first; ``unmerged`` says that adapters stay beside their base."""

    steps: tuple[Step, ...]
    candidates: tuple[Candidate, ...]
    unmerged: bool = False


def choose_branch(weigher: Weigher) -> Branch:
    """Walk the tree."""
    steps, unmerged = [_adapters(weigher)], False
    if weigher.wish.adapters > 1:
        step, unmerged = _unmerged(weigher)
        steps.append(step)
    steps.append(_machine(weigher))
    if unmerged:
        first, second = (_VLLM, _NATIVE) if weigher.machine.gpus else (_NATIVE, _VLLM)
        because = "vLLM's kernels are made for it" if first == _VLLM else "it needs no other environment"
        steps.append(Step("Which engine serves adapters unmerged?", first, because))
        return Branch(tuple(steps), (("lora", first), ("lora", second)), unmerged=True)
    chosen = _OBJECTIVES[weigher.wish.objective]
    more, candidates = _mac(weigher) if weigher.machine.kind == "mac" else chosen(weigher)
    return Branch((*steps, *more), candidates)


def _adapters(weigher: Weigher) -> Step:
    question, count = "How many adapters share the base?", weigher.wish.adapters
    if count > 1:
        return Step(question, f"{count}", "a base in memory once serves them all")
    if weigher.model.adapter is None:
        return Step(question, "none", "the source is a whole model")
    return Step(question, "one", "it is merged, because an unmerged one costs vLLM 17 to 26% of its throughput")


def _unmerged(weigher: Weigher) -> tuple[Step, bool]:
    question = "Can they stay unmerged?"
    if weigher.machine.kind == "mac":
        return Step(question, "no, each is merged", "on a Mac tuneserve plans one GGUF file for each"), False
    if problems := weigher.model.unmerged_problems:
        return Step(question, "no, each is merged and served as a model of its own", "; ".join(problems)), False
    return Step(question, "yes", "they are plain LoRA, at 17 to 26% of the throughput of merged weights (vLLM)"), True


def _machine(weigher: Weigher) -> Step:
    machine, question = weigher.machine, "What computes?"
    if machine.kind == "mac":
        return Step(question, "a Mac", "the native engine and vLLM have no path for its GPU; llama.cpp and Ollama do")
    if machine.kind == "cpu":
        return Step(question, f"a processor of {machine.cores} cores", f"{machine.name} has no NVIDIA GPU")
    gpu, count = machine.gpus[0], len(machine.gpus)
    number = f"{count} × {gpu.name}" + (f" in each of {machine.count} machines" if machine.count > 1 else "")
    capability = ".".join(map(str, gpu.capability)) if gpu.capability else "unknown"
    return Step(question, number, f"compute capability {capability}")


def _simple(_weigher: Weigher) -> tuple[list[Step], tuple[Candidate, ...]]:
    step = Step("What matters most?", "simplicity", "the native engine runs in your own Python, with nothing to export")
    return [step], (
        ("merged_16bit", _NATIVE), ("merged_16bit", "unsloth"), ("gguf:q4_k_m", _LLAMA), ("merged_16bit", _VLLM),
    )  # fmt: skip


def _memory(_weigher: Weigher) -> tuple[list[Step], tuple[Candidate, ...]]:
    because = "GGUF in 4 bits takes the least, and llama.cpp adds the least to it"
    step = Step("What matters most?", "memory", because)
    return [step], (
        ("gguf:q4_k_m", _LLAMA), ("int4", _VLLM), ("gguf:q2_k", _LLAMA), ("merged_4bit", _NATIVE), ("fp8", _VLLM),
        ("merged_16bit", _NATIVE),
    )  # fmt: skip


def _throughput(weigher: Weigher) -> tuple[list[Step], tuple[Candidate, ...]]:
    question = "What matters most?"
    if not weigher.machine.gpus:
        because = "the native engine batches sequences and needs no other environment"
        return [Step(question, "throughput", because)], (
            ("merged_16bit", _NATIVE), ("merged_16bit", _VLLM), ("gguf:q8_0", _LLAMA), ("gguf:q4_k_m", _LLAMA),
            ("gguf:q2_k", _LLAMA),
        )  # fmt: skip
    step = Step(question, "throughput", "vLLM is the fastest measured here with many sequences")
    return _with_bits(weigher, step)


def _latency(weigher: Weigher) -> tuple[list[Step], tuple[Candidate, ...]]:
    question = "What matters most?"
    if not weigher.machine.gpus:
        because = "a single sequence waits for the memory, so the fewest bytes per token win"
        return [Step(question, "latency", because)], (
            ("gguf:q4_k_m", _LLAMA), ("merged_16bit", _NATIVE), ("merged_16bit", _VLLM), ("gguf:q2_k", _LLAMA),
        )  # fmt: skip
    step = Step(question, "latency", "vLLM is the fastest measured here with a single sequence")
    return _with_bits(weigher, step)


def _with_bits(weigher: Weigher, step: Step) -> tuple[list[Step], tuple[Candidate, ...]]:
    """Decide whether 16 or 8 bits come first; fewer are what is left when neither fits."""
    question, capability = "In how many bits?", weigher.machine.gpus[0].capability
    sixteen, eight = ("merged_16bit", _VLLM), ("fp8", _VLLM)
    fewer = (("int4", _VLLM), ("gguf:q8_0", _LLAMA), ("gguf:q4_k_m", _LLAMA), ("gguf:q2_k", _LLAMA))
    nbytes = weigher.scales.weigh("merged_16bit").nbytes
    if capability is not None and capability < TURING:
        has = ".".join(map(str, capability))
        gone = Step("Does vLLM run on it?", "no", f"current releases need compute capability 7.5, and it has {has}")
        return [gone], (*fewer[1:], sixteen)
    if capability is None or capability < FP8:
        why = "fp8 arithmetic needs compute capability 8.9"
        if capability is not None and capability < AMPERE:
            why += "; without bfloat16 (8.0) vLLM computes in float16"
        return [step, Step(question, "16", why)], (sixteen, *fewer)
    if nbytes is not None and weigher.read_seconds(nbytes) < WORTH_SECONDS:
        why = "the weights are read in under a millisecond, so that fewer bytes would gain nothing"
        return [step, Step(question, "16", why)], (sixteen, eight, *fewer)
    why = "the GPU computes in fp8, which halves the bytes; the export measures what that costs"
    return [step, Step(question, "8 (fp8)", why)], (eight, sixteen, *fewer)


def _mac(weigher: Weigher) -> tuple[list[Step], tuple[Candidate, ...]]:
    objective, question = weigher.wish.objective, "What matters most?"
    four, two = ("gguf:q4_k_m", _LLAMA), ("gguf:q2_k", _LLAMA)
    if objective == "simple":
        return [Step(question, "simplicity", "Ollama is started with one command")], (
            ("ollama:q4_k_m", "ollama"), four, two,
        )  # fmt: skip
    if objective == "throughput":
        because = "q8_0 loses next to nothing, and several sequences share the reading of it"
        return [Step(question, objective, because)], (("gguf:q8_0", _LLAMA), four, two)
    return [Step(question, objective, "4 bits are the fewest that keep most of the quality")], (four, two)


_OBJECTIVES: dict[str, Callable[[Weigher], tuple[list[Step], tuple[Candidate, ...]]]] = {
    "throughput": _throughput,
    "latency": _latency,
    "memory": _memory,
    "simple": _simple,
}
