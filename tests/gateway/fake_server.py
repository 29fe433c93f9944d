"""A program that serves the fake engine: ``python -m tests.gateway.fake_server TOKENIZER_DIR OPTIONS``.

OPTIONS is JSON: ``engine`` for :class:`FakeEngine`, ``serve`` for :func:`tuneserve.gateway.serve`, ``api_keys`` and
``tls`` that name files, ``build`` that hangs or fails. What happens is printed, one line each; a line to standard input
releases held sequences.
"""

import asyncio
import json
import sys
import threading
from pathlib import Path

from tests.gateway.conftest import FakeEngine, make_served
from tuneserve.errors import InputError
from tuneserve.gateway import ServedModel, Settings, Tls, serve


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


class _Engine(FakeEngine):
    async def close(self) -> None:
        await super().close()
        say("closed")


def _release_when_told(engine: FakeEngine) -> None:
    if sys.stdin.readline():
        engine.release()


def main() -> int:
    directory, options = Path(sys.argv[1]), json.loads(sys.argv[2])

    async def build() -> list[ServedModel]:
        say("building")
        if options.get("build") == "fail":
            raise InputError("the model is broken; choose another.")
        if options.get("build") == "hang":
            await asyncio.Event().wait()
        served = make_served(directory, engine_type=_Engine, **options.get("engine", {}))
        assert isinstance(served.engine, FakeEngine)
        threading.Thread(target=_release_when_told, args=(served.engine,), daemon=True).start()
        return [served]

    try:
        keys = options.get("api_keys")
        settings = Settings(api_keys=None if keys is None else Path(keys))
        tls = Tls(*map(Path, options["tls"])) if "tls" in options else None
        on_ready = lambda url: say(f"ready {url}")  # noqa: E731
        serve(build, on_ready=on_ready, settings=settings, tls=tls, **options.get("serve", {}))
    except InputError as error:
        say(f"error {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
