"""Protects: options of operation that cannot be used are one sentence, before anything is loaded."""

import errno
import io
import logging
from pathlib import Path

import pytest

from tuneserve.cli import _run
from tuneserve.cli._operation import Operation, operation
from tuneserve.cli.chat import _read_line
from tuneserve.errors import InputError
from tuneserve.gateway import Settings


@pytest.mark.parametrize(
    ("settings", "files", "log_format", "said"),
    [
        (Settings(), (None, None), "xml", "choose text or json"),
        (Settings(), (Path("cert.pem"), None), "text", "give both"),
        (Settings(), (None, Path("key.pem")), "text", "give both"),
        (Settings(), (Path("missing.pem"), Path("missing.pem")), "text", "cannot be used"),
        (Settings(api_keys=Path("missing.toml")), (None, None), "text", "cannot be read"),
        (Settings(cors_origins=("chat.example",)), (None, None), "text", "is not the origin"),
        (Settings(otlp_endpoint="collector"), (None, None), "json", "no http"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    settings: Settings, files: tuple[Path | None, Path | None], log_format: str, said: str
) -> None:
    with pytest.raises(InputError, match=rf"^[^\n]*{said}[^\n]*[.]$"):
        operation(settings, *files, log_format, 30)


def test_only_a_server_that_was_asked_to_logs_its_requests(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("tuneserve.gateway.access")
    with Operation().logging():
        assert not logger.isEnabledFor(logging.INFO)
    with operation(Settings(), None, None, "text", 30).logging():
        logger.info("request", extra={"fields": {"status": 200}})
    assert capsys.readouterr().err.endswith(" info request status=200\n")


def test_what_standard_error_cannot_take_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stderr", Full())
    _run.console.print("progress")


def test_a_line_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    with pytest.raises(InputError, match="stdin is not utf-8 text; convert it"):
        _read_line()
