"""Protects: a conversation in the terminal goes on after a message that the server refuses."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.gateway.conftest import END, FakeEngine, make_served, running_server, write_tokenizer
from tuneserve.cli import app
from tuneserve.gateway import ServedModel


@pytest.fixture
def served(tmp_path: Path) -> ServedModel:
    served = make_served(write_tokenizer(tmp_path))
    assert isinstance(served.engine, FakeEngine)
    served.engine.answer = served.tokenizer.encode("Hello!" + END, add_special_tokens=False)
    return served


def test_a_message_that_is_too_long_is_refused_and_the_next_one_answered(served: ServedModel) -> None:
    assert isinstance(served.engine, FakeEngine)
    with running_server(served) as url:
        told = CliRunner().invoke(app, ["chat", url, "--max-tokens", "8"], input="x" * 300 + "\nHi\n\n")
    assert told.exit_code == 0, told.output
    assert told.stdout == "Hello!\n"
    assert "context" in told.stderr
    assert "xxx" not in served.tokenizer.decode(served.engine.prompt)


def test_a_server_without_that_model_ends_it(served: ServedModel) -> None:
    with running_server(served) as url:
        told = CliRunner().invoke(app, ["chat", url, "--model", "other"], input="Hi\n\n")
    assert told.exit_code != 0
