"""Protects: the engine that is named is taken or refused by name, and what it cannot load is exported once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.engines.model_engine import ModelEngine
from tuneserve.cli._engine import check_program, open_adapters, prepare, split_adapters
from tuneserve.engines import registry
from tuneserve.engines.contract import Engine
from tuneserve.engines.kind import EngineKind, NamedAdapter, NativeOptions, Preflight, ServeOptions
from tuneserve.errors import EngineError, InputError
from tuneserve.sources import ResolvedSource, resolve

Make = Callable[..., Path]


@dataclass
class Kind:
    """Loads whole models only, or what ``problems`` says."""

    name: str
    export: str | None = "merged_16bit"
    problems: tuple[str, ...] = ()
    missing: bool = False
    adapter_export: str | None = None
    checked: list[str] = field(default_factory=list)

    def check(self, source: ResolvedSource, adapters: Sequence[NamedAdapter], options: ServeOptions) -> Preflight:
        if self.missing:
            raise EngineError(f"{self.name} is not installed; install it.")
        self.checked.append(source.source)
        merging = ("it takes no adapter", "nor two") if source.adapter_dir else ()
        unmade = [adapter for adapter in adapters if adapter.directory.parent.name != "served"]
        return Preflight(
            problems=(*self.problems, *merging),
            export=self.export if not self.problems else None,
            notes=("a note",),
            adapter_export=self.adapter_export if unmade else None,
        )

    async def start(
        self, source: ResolvedSource, adapters: Sequence[NamedAdapter], options: ServeOptions, name: str
    ) -> Engine:
        return ModelEngine(source.model_dir)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def install(monkeypatch: pytest.MonkeyPatch, *kinds: Kind) -> None:
    engines: Mapping[str, EngineKind] = {kind.name: kind for kind in kinds}
    monkeypatch.setattr(registry, "ENGINES", engines)


def test_what_an_engine_cannot_load_is_exported_once(
    cache: Path, make_llama: Make, make_lora: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Kind("merger"))
    source = resolve(make_lora(make_llama(), scale=0.3))
    served = prepare("merger", source, (), ServeOptions(), verify=False)
    assert served.method == "merged_16bit"
    assert served.artifact.adapter_dir is None
    assert served.artifact.model_dir.parent == cache / "served"
    assert served.notes == ("a note",)
    written = (served.artifact.model_dir / "model.safetensors").stat()
    again = prepare("merger", source, (), ServeOptions(), verify=False)
    assert again.artifact == served.artifact
    assert (served.artifact.model_dir / "model.safetensors").stat() == written
    (source.model_dir / "generation_config.json").write_text("{}")
    assert prepare("merger", source, (), ServeOptions(), verify=False).artifact != served.artifact


def test_a_source_that_it_can_load_is_taken_as_it_is(
    cache: Path, make_llama: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Kind("merger"))
    source = resolve(make_llama())
    served = prepare("merger", source, (), ServeOptions(), verify=False)
    assert (served.artifact, served.method) == (source, None)
    assert not cache.exists()


def test_adapters_are_made_into_what_it_loads(
    cache: Path, make_llama: Make, make_lora: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Kind("converter", adapter_export="lora"))
    base = resolve(make_llama())
    path = make_lora(base.model_dir)
    served = prepare("converter", base, open_adapters({"tickets": str(path)}, base), ServeOptions(), verify=False)
    (adapter,) = served.adapters
    assert adapter.named.directory.parent == cache / "served"
    assert (adapter.named.directory / "adapter_model.safetensors").exists()
    # What it is compared with stays what was trained.
    assert adapter.source.adapter_dir == path


def test_every_reason_is_named(make_llama: Make, make_lora: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Kind("picky", problems=("it needs a GPU", "it has another family")))
    with pytest.raises(InputError, match="picky cannot serve adapter: it needs a GPU, and it has another family, and"):
        prepare("picky", resolve(make_lora(make_llama())), (), ServeOptions(), verify=False)


def test_auto_follows_the_plan_and_says_where_it_cannot(make_llama: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    source = resolve(make_llama())
    install(monkeypatch, Kind("merger"), Kind("native"))
    served = prepare("auto", source, (), ServeOptions(), verify=False)
    assert (served.kind.name, served.notes) == ("native", ("a note",))
    install(monkeypatch, Kind("merger"), Kind("native", missing=True))
    served = prepare("auto", source, (), ServeOptions(), verify=False)
    assert served.kind.name == "merger"
    assert served.notes[0].startswith("tuneserve plan chooses native for this machine, which cannot be used: native: ")
    # What fits no machine is left to the engines.
    served = prepare("auto", source, (), ServeOptions(context_length=2**40), verify=False)
    assert served.notes == ("a note",)


def test_auto_takes_the_first_that_can(make_llama: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    source = resolve(make_llama())
    install(monkeypatch, Kind("absent", missing=True), Kind("picky", problems=("no",)), Kind("merger"), Kind("last"))
    assert prepare("auto", source, (), ServeOptions(), verify=False).kind.name == "merger"
    install(monkeypatch, Kind("absent", missing=True), Kind("picky", problems=("no",)))
    with pytest.raises(InputError, match="absent: absent is not installed; install it; picky: no"):
        prepare("auto", source, (), ServeOptions(), verify=False)
    with pytest.raises(InputError, match="name it with --engine"):
        prepare("auto", source, (), ServeOptions(arguments=("--fast",)), verify=False)


def test_an_unknown_engine_has_near_names(make_llama: Make) -> None:
    with pytest.raises(InputError, match=r"no engine 'llamacpp'; choose auto or one of llama\.cpp"):
        prepare("llamacpp", resolve(make_llama()), (), ServeOptions(), verify=False)


def test_the_native_engine_refuses_what_is_not_its_own(make_llama: Make) -> None:
    source = resolve(make_llama())
    with pytest.raises(InputError, match="takes no program or arguments"):
        prepare("native", source, (), ServeOptions(arguments=("--x",)), verify=False)
    with pytest.raises(InputError, match="dtype 'int3' is not known"):
        prepare("native", source, (), ServeOptions(dtype="int3"), verify=False)
    with pytest.raises(InputError, match="3 devices do not divide its 4 attention heads"):
        prepare("native", source, (), ServeOptions(tensor_parallel=3), verify=False)
    assert prepare("native", source, (), ServeOptions(tensor_parallel=2), verify=False).options.tensor_parallel == 2


def test_the_native_engine_divides_no_unmerged_adapters(make_llama: Make, make_lora: Make) -> None:
    source = resolve(make_llama())
    adapters = open_adapters({"tickets": str(make_lora(source.model_dir))}, source)
    with pytest.raises(InputError, match="with tensor parallelism it does not compute adapters unmerged"):
        prepare("native", source, adapters, ServeOptions(tensor_parallel=2), verify=False)


def test_adapters_are_named_once_and_are_over_the_source(make_llama: Make, make_lora: Make) -> None:
    base = resolve(make_llama())
    path = make_lora(base.model_dir)
    (adapter,) = open_adapters(split_adapters([f"tickets={path}"]), base)
    assert adapter.named == NamedAdapter("tickets", path)
    assert adapter.source.model_dir == base.model_dir
    for given, reason in (
        ([str(path)], "is not NAME=PATH"),
        ([f"a/b={path}"], "is not NAME=PATH"),
        ([f"x={path}", f"x={path}"], "two models would be called 'x'"),
        ([f"x={base.model_dir}"], "the adapter x cannot be served: .* is a whole model"),
    ):
        with pytest.raises(InputError, match=reason):
            open_adapters(split_adapters(given), base)
    with pytest.raises(InputError, match="is an adapter itself"):
        open_adapters({"x": str(path)}, resolve(path))
    with pytest.raises(InputError, match="an adapter cannot be called 'a/b'"):
        open_adapters({"a/b": str(path)}, base)


def test_a_program_is_for_the_engines_that_have_one() -> None:
    python, binary = Path("venv/bin/python"), Path("bin/llama-server")
    assert check_program("vllm", python, None) == python
    assert check_program("llama.cpp", None, binary) == binary
    assert check_program("auto", None, None) is None
    for engine, options in (("llama.cpp", (python, None)), ("native", (python, None)), ("vllm", (None, binary))):
        with pytest.raises(InputError, match=f"not for --engine {engine}"):
            check_program(engine, *options)


@pytest.mark.parametrize("engine", ["auto", "vllm"])
def test_options_of_the_native_engine_are_refused_for_others_by_name(engine: str, make_llama: Make) -> None:
    options = ServeOptions(native=NativeOptions(weights="int4", prefix_cache=False))
    with pytest.raises(InputError, match=f"--no-prefix-cache, --weights .* not for --engine {engine}"):
        prepare(engine, resolve(make_llama()), (), options, verify=False)


def test_the_native_engine_takes_its_own_options_and_refuses_values_that_it_does_not_know(make_llama: Make) -> None:
    source = resolve(make_llama())
    options = NativeOptions(
        cache_tokens=512, prefix_cache=False, speculation=3, cpu_step="eager", weights="dequantised"
    )
    assert prepare("native", source, (), ServeOptions(native=options), verify=False).options.native == options
    for wrong in (NativeOptions(weights="int3"), NativeOptions(cpu_step="fast")):
        with pytest.raises(InputError, match="is not known; choose auto"):
            prepare("native", source, (), ServeOptions(native=wrong), verify=False)
