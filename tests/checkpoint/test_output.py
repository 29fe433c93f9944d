"""An output directory appears complete or not at all."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tuneserve.checkpoint import AtomicDirectory
from tuneserve.errors import OutputError


def test_success_renames_into_place_with_usual_permissions(tmp_path: Path) -> None:
    with AtomicDirectory(tmp_path / "deep" / "out") as output:
        (output.path / "file").write_text("x")
        assert not (tmp_path / "deep" / "out").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "deep" / "out").iterdir()] == ["file"]
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "deep" / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_any_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), AtomicDirectory(tmp_path / "out") as output:
        (output.path / "file").write_text("x")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(OutputError, match="exists already"), AtomicDirectory(tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_text() == "precious"
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(OutputError, match="exists already"), AtomicDirectory(tmp_path / "link"):
        pass


def test_a_name_that_there_cannot_be_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("a" * 256, "file/out", "nul\0"):
        with pytest.raises(OutputError, match="choose another output directory"), AtomicDirectory(tmp_path / name):
            raise AssertionError("not to be reached")
    with AtomicDirectory(tmp_path / ("語" * 85)):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "語" * 85]


def test_an_output_made_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(OutputError), AtomicDirectory(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"disk .* is full; free some space"), AtomicDirectory(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_other_errors_inside_keep_their_type(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), AtomicDirectory(tmp_path / "out"):
        (tmp_path / "missing").read_text()


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"), AtomicDirectory(tmp_path / "file" / "out"):
        pass


def test_a_killed_run_leaves_no_output_and_the_next_run_clears_up(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom tuneserve.checkpoint import AtomicDirectory\n"
        "with AtomicDirectory(Path(sys.argv[1])) as output:\n"
        "    (output.path / 'half').write_text('x')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.iterdir())) == 1
    with AtomicDirectory(tmp_path / "out") as output:
        (output.path / "whole").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_runs_for_the_same_output_do_not_disturb_each_other(tmp_path: Path) -> None:
    with pytest.raises(OutputError), AtomicDirectory(tmp_path / "out") as first:
        (first.path / "file").write_text("first")
        with AtomicDirectory(tmp_path / "out") as second:
            (second.path / "file").write_text("second")
        assert (first.path / "file").read_text() == "first"
    assert (tmp_path / "out" / "file").read_text() == "second"


def test_a_killed_run_can_be_resumed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom tuneserve.checkpoint import AtomicDirectory\n"
        "with AtomicDirectory(Path(sys.argv[1])) as output:\n"
        "    (output.path / 'half').write_text('x')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    with AtomicDirectory(tmp_path / "out", resume=True) as output:
        assert (output.path / "half").read_text() == "x"
        (output.path / "rest").write_text("y")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["half", "rest"]
