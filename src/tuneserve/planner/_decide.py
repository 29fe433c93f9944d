"""From the tree's candidates to the one that is taken, what was considered beside it, or a refusal with its remedy."""

from dataclasses import dataclass

from tuneserve.errors import HardwareError
from tuneserve.hardware import gpus
from tuneserve.planner._options import Option, Weigher
from tuneserve.planner._speed import figures
from tuneserve.planner._tree import Step, choose_branch

_LEAST_CONTEXT = 256
_SGLANG = "worth measuring where most requests begin with the same long text; it loads the same artifact"
_LATER = {
    "merged_16bit": "nothing is lost in it, but it takes more memory and more time to read",
    "fp8": "half the bytes, at a small loss that is not needed here",
    "int4": "a quarter of the bytes, at a larger loss that is not needed here",
    "merged_4bit": "a quarter of the bytes on the disk, but a slow path in vLLM",
    "lora": "the other engine comes first",
    "gguf:q8_0": "half the bytes of 16 bits at next to no loss, for where a single sequence has to be fast",
    "gguf:q4_k_m": "half the bytes of q8_0, at a larger loss that is not needed here",
    "gguf:q2_k": "the fewest bits, at a large loss that is not needed here",
}
_FEW_AT_ONCE = "llama.cpp is made for few sequences at once"
_VLLM_TAKES_MORE = "vLLM takes more memory beside the weights"


@dataclass(frozen=True)
class Considered:
    """An option that was not taken, and why."""

    option: str
    why_not: str


@dataclass(frozen=True)
class Decision:
    """What is taken, by which steps; ``weighed`` are the options whose memory was estimated."""

    steps: tuple[Step, ...]
    taken: Option
    considered: tuple[Considered, ...]
    weighed: tuple[Option, ...]
    unmerged: bool


def decide(weigher: Weigher) -> Decision:
    """Choose how to serve.

    Raises:
        HardwareError: nothing serves the model on this machine; the message says what would.
    """
    branch = choose_branch(weigher)
    options: list[Option] = []
    found = False
    for method, engine in branch.candidates:
        # What comes after the one that is taken need not be weighed, which takes longest.
        options.append(weigher.glance(method, engine) if found else weigher.weigh(method, engine))
        found = found or weigher.is_enough(options[-1])
    possible = [option for option in options if option.sequences]
    if not possible:
        raise _refusal(weigher, options)
    # If none holds enough, the first that holds half of what any does: quality is not given up for a few more.
    wished = weigher.wish.concurrency if found else max(option.sequences for option in possible)
    taken = next(option for option in possible if 2 * option.sequences >= wished)
    considered = [
        Considered(option.name, _why_not(option, taken, options)) for option in options if option is not taken
    ]
    if taken.engine == "vllm" and weigher.machine.gpus:
        considered.append(Considered(f"{taken.method} on sglang", _SGLANG))
    earlier = options[: options.index(taken)]
    tried = [Step(f"{option.name}?", "no", _why_not(option, taken, options)) for option in earlier]
    steps = (*branch.steps, *tried, _fit_step(weigher, taken), *_parallel_steps(weigher, taken))
    weighed = tuple(option for option in options if option.fit is not None)
    return Decision(steps, taken, tuple(considered), weighed, branch.unmerged)


def _why_not(option: Option, taken: Option, options: list[Option]) -> str:
    if option.problems:
        return "; ".join(option.problems)
    if options.index(option) < options.index(taken):
        return f"it holds {_sequences(option.sequences)} at once, and {taken.name} {taken.sequences:,}"
    if option.method == taken.method:
        return f"{taken.engine} comes first"
    if option.engine == "llama.cpp" and taken.engine == "vllm":
        return _FEW_AT_ONCE
    if option.engine == "vllm" and taken.engine == "llama.cpp":
        return _VLLM_TAKES_MORE
    if (option.engine, taken.engine) == ("llama.cpp", "ollama") and option.method[-6:] == taken.method[-6:]:
        return "the same weights, where Ollama is not wanted"
    return _LATER[option.method]


def _fit_step(weigher: Weigher, taken: Option) -> Step:
    wish, found = weigher.wish, taken.fit
    assert found is not None, "only what fits is taken"
    where = "on each GPU" if weigher.machine.gpus and weigher.machine.kind == "nvidia" else "in memory"
    answer = "yes" if taken.sequences >= wish.concurrency else f"{taken.sequences:,} of {wish.concurrency:,} at once"
    room = (
        f"{found.weights / 1e9:.2f} GB of weights and {found.overhead / 1e9:.1f} GB for the engine {where}, "
        f"{found.cache / 1e6:,.0f} MB for each sequence, of {found.usable / 1e9:.1f} GB"
    )
    rest = "" if taken.sequences >= wish.concurrency else "; what does not fit at full length waits"
    return Step(f"{taken.name}, with {wish.concurrency:,} × {wish.context:,} tokens?", answer, room + rest)


def _sequences(count: int) -> str:
    return f"{count:,} sequence" + ("s" if count != 1 else "")


def _parallel_steps(weigher: Weigher, taken: Option) -> list[Step]:
    machine, steps = weigher.machine, []
    if len(machine.gpus) > 1 and machine.kind == "nvidia":
        question = "How are the GPUs of a machine used?"
        if taken.tensor > 1:
            heads = f"{weigher.model.cache.heads} heads and {weigher.model.cache.kv_heads} key-value heads"
            answer = f"tensor parallel over {taken.tensor}"
            steps.append(Step(question, answer, f"the {heads} divide by it, and each GPU reads its share"))
        elif taken.replicas > 1:
            steps.append(Step(question, "one replica on each", "it fits on one, and replicas need not talk"))
    if machine.count > 1:
        question = "How are the machines used?"
        if taken.pipeline > 1:
            answer = f"pipeline parallel over {taken.pipeline}, on Ray"
            steps.append(Step(question, answer, "one machine does not hold the model"))
        else:
            because = "one machine holds the model; Kubernetes or Ray spreads requests"
            steps.append(Step(question, f"{taken.replicas} replicas in all", because))
    return steps


def _refusal(weigher: Weigher, options: list[Option]) -> HardwareError:
    name, machine = weigher.model.source.name, weigher.machine
    small = [option for option in options if option.fit is not None]
    if not small:
        reasons = "; ".join(f"{option.name}: {option.problems[0]}" for option in options)
        return HardwareError(
            f"nothing serves {name} on {machine.name} ({reasons}); choose other hardware or objective."
        )
    nearest = min(small, key=lambda option: option.fit.missing if option.fit else 0)
    assert nearest.fit is not None
    found, context = nearest.fit, weigher.wish.context
    row = next(row for row in figures()["memory"] if row["engine"] in (nearest.engine, "llama.cpp"))
    # For one sequence, with the share of the rest that an engine gives to its cache.
    needed = found.weights + found.overhead + int(found.cache / row.get("cache_share", 1.0))
    remedies = []
    room = int((found.usable - found.weights - found.overhead) * row.get("cache_share", 1.0))
    shorter = max(0, room) * context // max(1, found.cache)
    if shorter >= _LEAST_CONTEXT:
        remedies.append(f"a context of {shorter // 64 * 64:,} tokens")
    if all(option.method != "gguf:q2_k" for option in options):
        remedies.append("--objective memory")
    memory = needed / (found.usable / found.memory)
    if machine.kind == "nvidia":
        larger = [gpu for gpu in gpus() if gpu.memory >= memory]
        larger.sort(key=lambda gpu: (gpu.memory, -(gpu.bandwidth or 0)))
        remedies.append(f"a GPU of {memory / 1e9:.0f} GB or more" + (f" ({larger[0].name})" if larger else ""))
        if nearest.engine == "vllm" and not larger:
            remedies.append("more GPUs")
    else:
        remedies.append(f"a machine with {memory / 1e9:.0f} GB of free memory or more")
    return HardwareError(
        f"{name} does not fit on {machine.name}: with {nearest.name}, the least of those tried, one sequence of "
        f"{context:,} tokens takes {needed / 1e9:.1f} GB and {found.usable / 1e9:.1f} GB can be used; choose "
        f"{', or '.join(remedies)}."
    )
