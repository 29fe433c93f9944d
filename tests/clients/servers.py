"""The two servers that clients are tried on: the demo model on the native engine, and a script that calls tools.

Tools are called in the form of Hermes. :func:`main` runs the scripted one.
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.gateway.conftest import END, FakeEngine, make_served, write_tokenizer
from tuneserve.engines.contract import GenerationRequest, TokenChunk
from tuneserve.gateway import ServedModel, serve

ROOT = Path(__file__).parents[2]
TEMPLATE = """\
{%- if tools %}<tools>{{ tools | tojson }}</tools> Calls: <tool_call>{"name": ..., "arguments": ...}</tool_call>.
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
ANSWER = "It is 21 degrees in Oslo."
GREETING = "Hello, wörld!"
_URL = re.compile(r"https?://[0-9.:]+")


class ScriptedEngine(FakeEngine):
    """Calls ``get_weather`` where there are tools, answers once there is a result, and otherwise greets."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """Say what the prompt asks for."""
        tokenizer = SCRIPT.tokenizer
        prompt = tokenizer.decode(request.prompt_ids, skip_special_tokens=False)
        text = ANSWER if "21 degrees" in prompt else CALL if "<tools>" in prompt else GREETING
        self.answer = tokenizer.encode(text + END, add_special_tokens=False)
        async for chunk in super().generate(request):
            yield chunk


@contextmanager
def real_server(directory: Path) -> Iterator[str]:
    """Serve ``demo`` with the native engine, and its adapter ``tickets``, whose template has tools; return the URL."""
    from tuneserve.sources import resolve

    adapter = directory / "adapters/tickets"
    shutil.copytree(ROOT / "examples/tickets/adapter", adapter)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(resolve("demo").model_dir / name, adapter)
    (adapter / "chat_template.jinja").write_text(TEMPLATE)
    options = ["--engine", "native", "--no-verify", "--context", "2048", "--max-running", "8", "--port", "0"]
    adapters = ["--adapter", f"tickets={adapter}", "--adapter-dir", f"{directory}/adapters"]
    with _running([sys.executable, "-m", "tuneserve", "serve", "demo", *options, *adapters], directory) as url:
        yield url


@contextmanager
def scripted_server(directory: Path) -> Iterator[str]:
    """Serve ``tuned``, which follows the script, from a process of its own; the value is the URL."""
    with _running([sys.executable, "-m", "tests.clients.servers", str(directory)], directory) as url:
        yield url


@contextmanager
def _running(command: list[str], directory: Path) -> Iterator[str]:
    log = directory / "log.txt"
    with log.open("w") as file:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
    try:
        while (found := _URL.search(_ready_line(log))) is None:
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            raise RuntimeError(f"the server ended: {log.read_text()[-2000:]}")
        yield found.group()
    finally:
        process.terminate()
        process.wait()


def _ready_line(log: Path) -> str:
    return "".join(line for line in log.read_text().splitlines(keepends=True) if line.startswith("serving "))


SCRIPT: ServedModel


def main() -> None:
    """Serve the script over a tokenizer in the directory that the command line names."""
    global SCRIPT
    SCRIPT = make_served(write_tokenizer(Path(sys.argv[1]), TEMPLATE), ScriptedEngine, context_length=100_000)

    async def build() -> tuple[ServedModel, ...]:
        await asyncio.sleep(0)
        return (SCRIPT,)

    serve(build, on_ready=lambda url: print(f"serving {url}", flush=True), port=0)  # noqa: T201


if __name__ == "__main__":
    main()
