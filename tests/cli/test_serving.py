"""Protects: nobody serves a broken merge unknowingly, and a right one is served until the process is asked to stop."""

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
from tuneserve.cli._serving import run_server
from tuneserve.engines.contract import Engine
from tuneserve.engines.kind import NamedAdapter, Preflight, ServeOptions
from tuneserve.errors import ParityError
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
