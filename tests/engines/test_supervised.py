"""Protects: an engine's server is started, told apart from a dead one, started again, and never left behind."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from tuneserve.engines._log import EngineLog
from tuneserve.engines._restarts import Restarts
from tuneserve.engines.supervised import Launch, SupervisedServer
from tuneserve.errors import EngineError, OutputError

STAND_IN = Path(__file__).with_name("stand_in.py")
AT_ONCE = Restarts(first_delay=0.0, longest_delay=0.0, attempts=2)


def launch(directory: Path, behaviour: str = "serve", **changes: Any) -> Launch:
    return Launch(
        engine="stand-in",
        command=lambda port: [sys.executable, STAND_IN, str(port), behaviour, directory],
        **{"restarts": AT_ONCE, "close_seconds": 0.2, "start_seconds": 60, **changes},
    )


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 120))


def processes(directory: Path) -> dict[int, str]:
    return {int(file.read_text()): file.name.partition("-")[0] for file in directory.glob("*.pid")}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def die(server: SupervisedServer) -> None:
    """Have the engine die, and wait until that is noticed."""
    async with httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(httpx.TransportError):
            await client.get(server.address() + "/die")
    while server.ready:
        await asyncio.sleep(0.01)


def test_it_is_ready_once_its_path_answers_and_ends_with_close(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = await SupervisedServer.start(launch(tmp_path))
        assert server.ready
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(server.address() + "/health")).status_code == 200
        await server.close()
        assert not server.ready
        with pytest.raises(EngineError, match="stand-in was stopped"):
            server.address()

    run(scenario())
    assert [alive(pid) for pid in processes(tmp_path)] == [False]


def test_a_coroutine_can_say_when_it_is_ready(tmp_path: Path) -> None:
    answers: list[object] = []

    async def second_answer(client: httpx.AsyncClient) -> bool:
        answers.append((await client.get("/health")).json()["auth"])
        return len(answers) == 2

    async def scenario() -> None:
        headers = {"Authorization": "Bearer mine"}
        server = await SupervisedServer.start(launch(tmp_path, ready=second_answer, headers=headers))
        await server.close()

    run(scenario())
    assert answers == ["Bearer mine"] * 2


def test_an_engine_that_dies_at_start_is_told_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        run(SupervisedServer.start(launch(tmp_path, "break")))  # type: ignore[arg-type]
    assert str(caught.value) == (
        "stand-in ended with exit code 3 while it started; its last lines:\n  reading weights\n  no such tensor"
    )


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    started = Launch(engine="stand-in", command=lambda port: ["/nowhere/engine", str(port)])
    with pytest.raises(EngineError, match=r"/nowhere/engine cannot be started \(No such file or directory\)"):
        run(SupervisedServer.start(started))  # type: ignore[arg-type]


def test_an_engine_that_is_not_ready_in_time_is_ended(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"not ready after 1 seconds"):
        run(SupervisedServer.start(launch(tmp_path, "never", start_seconds=1)))  # type: ignore[arg-type]
    assert not any(map(alive, processes(tmp_path)))


def test_a_dead_engine_is_started_again_and_serves(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = await SupervisedServer.start(launch(tmp_path, log=tmp_path / "logs" / "engine.log"))
        await die(server)
        assert "out of luck" in server.last_lines
        with pytest.raises(EngineError, match=r"exit code 7 and is being started again; see .*engine\.log"):
            server.address()
        while not server.ready:
            await asyncio.sleep(0.01)
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(server.address() + "/health")).status_code == 200
        await server.close()

    run(scenario())
    assert len(processes(tmp_path)) == 2
    assert "starting it again" in (tmp_path / "logs" / "engine.log").read_text()


def test_an_engine_that_keeps_dying_stays_down(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = await SupervisedServer.start(launch(tmp_path, "break-later"))
        await die(server)
        assert server._watcher is not None
        await server._watcher
        with pytest.raises(EngineError, match=r"exit code 3 while it started, 3 times .* not started again"):
            server.address()
        await server.close()

    run(scenario())
    assert len(processes(tmp_path)) == 3


def test_closing_while_it_is_started_again_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        slow = Restarts(first_delay=600.0)
        server = await SupervisedServer.start(launch(tmp_path, restarts=slow))
        await die(server)
        await server.close()

    run(scenario())
    assert not any(map(alive, processes(tmp_path)))


@pytest.mark.parametrize("behaviour", ["workers", "deaf"])
def test_close_also_ends_what_detached_itself_or_does_not_listen(tmp_path: Path, behaviour: str) -> None:
    async def scenario() -> None:
        server = await SupervisedServer.start(launch(tmp_path, behaviour))
        assert all(map(alive, processes(tmp_path)))
        await server.close()

    run(scenario())
    assert ("worker" in processes(tmp_path).values()) == (behaviour == "workers")
    assert not any(map(alive, processes(tmp_path)))


def test_workers_of_a_dead_engine_are_gone_before_it_is_started_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = await SupervisedServer.start(launch(tmp_path, "workers"))
        first = processes(tmp_path)
        await die(server)
        assert not any(map(alive, first))
        await server.close()

    run(scenario())


def test_nothing_outlives_a_starter_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from tuneserve.engines.supervised import Launch, SupervisedServer\n"
        "def command(port):\n"
        "    return [sys.executable, sys.argv[1], str(port), 'workers', sys.argv[2]]\n"
        "async def main():\n"
        "    launch = Launch(engine='stand-in', command=command, close_seconds=0.2)\n"
        "    server = await SupervisedServer.start(launch)\n"
        "    print('ready', flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", program, str(STAND_IN), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"ready\n"
        assert sorted(processes(tmp_path).values()) == ["server", "worker"]
        watched = [os.pidfd_open(pid) for pid in processes(tmp_path)]
        starter.send_signal(signal.SIGKILL)
        for descriptor in watched:
            assert select.select([descriptor], [], [], 60)[0], "a process outlived its starter"
            os.close(descriptor)


def test_the_log_is_rotated_and_its_last_lines_are_kept(tmp_path: Path) -> None:
    log = EngineLog(tmp_path / "engine.log", file_bytes=1000)
    log.open()
    for number in range(100):
        log.write(b"line %d " % number + b"x" * 90 + b"\n")
    log.write(b"cut in ")
    log.write(b"two\nlast")
    log.close()
    assert log.last_lines[-2:] == ("cut in two", "last")
    sizes = [file.stat().st_size for file in sorted(tmp_path.iterdir())]
    assert len(sizes) == 2
    assert all(0 < size <= 1000 for size in sizes)


def test_a_line_without_end_takes_little_memory() -> None:
    log = EngineLog(None)
    for _ in range(100):
        log.write(b"y" * 100_000)
    assert len("".join(log.last_lines)) < 10_000


def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another directory"):
        run(SupervisedServer.start(launch(tmp_path, log=tmp_path / "file" / "engine.log")))  # type: ignore[arg-type]
