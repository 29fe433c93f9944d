"""Protects: nobody serves a broken merge unknowingly, and a right one is served until the process is asked to stop."""

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.engines.model_engine import ModelEngine
from tests.gateway.conftest import write_tokenizer
from tuneserve import artifacts
from tuneserve.cli._engine import Adapter, Served
from tuneserve.cli._serving import run_server, start
from tuneserve.engines.contract import Engine
from tuneserve.engines.kind import NamedAdapter, Preflight, ServeOptions
from tuneserve.errors import ParityError
from tuneserve.gateway import ServedModel
from tuneserve.sources import ResolvedSource, resolve

Make = Callable[..., Path]


@dataclass
class Kind:
    """Serves the models in these directories, whatever it is asked for."""

    directory: Path
    adapters: dict[str, Path] = field(default_factory=dict)
    lacks: tuple[str, ...] = ("prompt_logprobs",)
    engine: ModelEngine | None = None
    name: str = "exact"

    def check(self, source: ResolvedSource, adapters: Sequence[NamedAdapter], options: ServeOptions) -> Preflight:
        return Preflight()

    async def start(
        self, source: ResolvedSource, adapters: Sequence[NamedAdapter], options: ServeOptions, name: str
    ) -> Engine:
        assert [adapter.name for adapter in adapters] == list(self.adapters)
        self.engine = ModelEngine(self.directory, self.adapters, self.lacks)
        return self.engine


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, write_model: Make) -> Path:
    directory = write_model(tmp_path_factory.mktemp("models") / "base", vocab_size=258)
    config = (directory / "config.json").read_text()
    write_tokenizer(directory)
    (directory / "config.json").write_text(config)
    return directory


@pytest.fixture(scope="module")
def adapter(base: Path, write_adapter: Make) -> Path:
    return write_adapter(base.parent / "adapter", base, scale=0.3)


@pytest.fixture(scope="module")
def merged(adapter: Path) -> Path:
    artifacts.export(adapter, adapter.parent / "merged", verify=False)
    return adapter.parent / "merged"


def serve(kind: Kind, source: Path, adapters: Sequence[Adapter] = (), method: str | None = None) -> list[object]:
    """Serve, ask for the models once that is ready, and stop; return the models' names."""
    found: list[object] = []
    resolved = resolve(source)

    def ready(url: str) -> None:
        found.append(url)
        os.kill(os.getpid(), signal.SIGTERM)

    served = Served(
        kind=kind, source=resolved, artifact=resolved, method=method, adapters=tuple(adapters), options=ServeOptions(),
        notes=(),
    )  # fmt: skip
    run_server({"model": served}, host="127.0.0.1", port=0, on_ready=ready)
    return found


def test_a_right_merge_is_served_until_the_end(merged: Path, adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind = Kind(merged)
    (url,) = serve(kind, adapter, method="merged_16bit")
    assert "adapter is the model that was trained: KL at least" in " ".join(capsys.readouterr().err.split())
    assert kind.engine is not None
    assert kind.engine.closed
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/health", trust_env=False)


def test_a_broken_merge_is_not(base: Path, adapter: Path) -> None:
    kind = Kind(base)
    with pytest.raises(ParityError, match=r"not the model that was trained.*--no-verify would serve it") as caught:
        serve(kind, adapter, method="merged_16bit")
    assert caught.value.exit_code == 1
    assert kind.engine is not None
    assert kind.engine.closed


def test_neither_is_an_adapter_that_does_nothing(base: Path, adapter: Path) -> None:
    tuned = Adapter(name="tuned", source=resolve(adapter))
    with pytest.raises(ParityError, match="serves as tuned"):
        serve(Kind(base, {"tuned": base}), base, [tuned])


def test_an_engine_that_tells_no_probabilities_is_served_with_a_note(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve(Kind(base, lacks=("logprobs", "prompt_logprobs")), base)
    said = " ".join(capsys.readouterr().err.split())
    assert "was not checked: exact gives no log-probabilities" in said


def test_several_models_start_and_are_closed_together(base: Path, merged: Path, adapter: Path) -> None:
    kinds = [Kind(base), Kind(merged)]
    sources = [resolve(base), resolve(adapter)]
    models = {
        f"model-{index}": Served(
            kind=kind, source=source, artifact=source, method=None, adapters=(), options=ServeOptions(), notes=(),
            verify=False,
        )
        for index, (kind, source) in enumerate(zip(kinds, sources, strict=True))
    }  # fmt: skip
    run_server(models, host="127.0.0.1", port=0, on_ready=lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert all(kind.engine is not None and kind.engine.closed for kind in kinds)


def test_when_the_second_model_is_broken_the_first_is_not_left_behind(base: Path, adapter: Path) -> None:
    kinds = [Kind(base), Kind(base)]
    models = {
        f"model-{index}": Served(
            kind=kind, source=source, artifact=source, method=method, adapters=(), options=ServeOptions(), notes=(),
        )
        for index, (kind, source, method) in enumerate(
            zip(kinds, (resolve(base), resolve(adapter)), (None, "merged_16bit"), strict=True)
        )
    }  # fmt: skip
    with pytest.raises(ParityError, match="not the model that was trained"):
        run_server(models, host="127.0.0.1", port=0, on_ready=lambda _: pytest.fail("it was served"))
    assert all(kind.engine is not None and kind.engine.closed for kind in kinds)


def test_what_is_served_tells_each_step_with_its_divergence(base: Path, adapter: Path, merged: Path) -> None:
    tuned = Adapter(name="tuned", source=resolve(adapter))
    over_base = Served(
        kind=Kind(base, {"tuned": adapter}), source=resolve(base), artifact=resolve(base), method=None,
        adapters=(tuned,), options=ServeOptions(), notes=(),
    )  # fmt: skip

    async def started(served: Served) -> ServedModel:
        model = await start("model", served)
        await model.engine.close()
        return model

    model = asyncio.run(started(over_base))
    assert [(step.kind, step.name) for step in model.lineage] == [("model", "base"), ("engine", "exact")]
    (unmerged,) = model.adapters
    assert [step.kind for step in unmerged.lineage] == ["model", "adapter", "engine"]
    parity = unmerged.lineage[-1].parity
    assert parity is not None
    assert parity.at_least
    assert parity.kl < 1e-3

    # Both of an artifact of ours and of what was made for the engine, the manifest tells.
    for source, artifact, method in ((merged, merged, None), (adapter, merged, "merged_16bit")):
        served = Served(
            kind=Kind(merged), source=resolve(source), artifact=resolve(artifact), method=method, adapters=(),
            options=ServeOptions(), notes=(), verify=False,
        )  # fmt: skip
        lineage = asyncio.run(started(served)).lineage
        assert [step.kind for step in lineage] == ["base", "adapter", "method", "engine"]
        assert lineage[2].name == "merged_16bit"
        assert lineage[2].facts["changed tensors"] == "14"
        assert lineage[2].parity is None, "it was exported without a check"
