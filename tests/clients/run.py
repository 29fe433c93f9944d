"""Try every client on the real and the scripted server, and write what came of it into ``docs/clients.md``.

The clients live in an environment of their own, ``~/.cache/tuneserve/clients``, in the versions of
``elsewhere/requirements.txt`` and ``js/package-lock.json``; OpenAI's and Anthropic's newest are also in this one.
"""

import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.clients.servers import ROOT, real_server, scripted_server
from tuneserve.sources import cache_directory

HERE = Path(__file__).parent
PAGE = ROOT / "docs/clients.md"
HEAD = """# Clients

Other people's clients, and what each was tried on: `make clients` runs them all on `tuneserve serve demo` with the
native engine and its adapter, and on a scripted model that calls tools, and writes this page. The newest official
Python clients are part of `make test` as well.

| client | version | what | result |
| --- | --- | --- | --- |
"""
_PYTHON = {
    "test_openai": "openai",
    "test_anthropic": "anthropic",
    "test_langchain": "langchain-openai",
    "test_llm": "llm",
    "test_instructor": "instructor",
    "test_pydantic_ai": "pydantic-ai-slim",
}
_JS = {"openai": "openai", "anthropic": "@anthropic-ai/sdk"}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    client: str
    version: str
    what: str
    passed: bool


def main() -> int:
    """Run everything; the exit code says whether all of it passed."""
    python = _environment()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for each in ("real", "scripted"):
            (directory / each).mkdir()
        with real_server(directory / "real") as real, scripted_server(directory / "scripted") as scripted:
            os.environ |= {"TUNESERVE_REAL_URL": real, "TUNESERVE_SCRIPTED_URL": scripted}
            rows = [*_pytest(Path(sys.executable), directory), *_pytest(python, directory), *_node(directory)]
    lines = [
        f"| {row.client} | {row.version} | {row.what} | {'works' if row.passed else 'FAILS'} |"
        for row in dict.fromkeys(rows)
    ]
    PAGE.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    failed = [row for row in rows if not row.passed]
    print(f"{len(rows) - len(failed)} passed, {len(failed)} failed; see {PAGE.relative_to(ROOT)}")
    return 1 if failed else 0


def _environment() -> Path:
    """Return the Python that has the clients, installed when the list of them has changed."""
    directory, wanted = cache_directory() / "clients", HERE / "elsewhere/requirements.txt"
    python, installed = directory / "bin/python", directory / "installed.txt"
    if not installed.exists() or installed.read_text() != wanted.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", wanted], check=True)
        installed.write_text(wanted.read_text())
    return python


def _pytest(python: Path, directory: Path) -> Iterator[Row]:
    here = python == Path(sys.executable)
    report = directory / "report.xml"
    files = [HERE / "test_openai.py", HERE / "test_anthropic.py"]
    files += [] if here else sorted((HERE / "elsewhere").glob("test_*.py"))
    # Nothing of this project is installed there, so neither its options nor its other fixtures apply.
    options = ["-q", "-c", os.devnull, f"--rootdir={HERE}", f"--confcutdir={HERE}", "-p", "no:cacheprovider"]
    options += ["-o", "junit_family=xunit1", f"--junit-xml={report}"]
    subprocess.run([python, "-m", "pytest", *options, *files], check=False, cwd=HERE)
    for case in ElementTree.parse(report).iter("testcase"):
        module = case.get("classname", "").rpartition(".")[2]
        client = _PYTHON[module]
        path = next(path for path in files if path.stem == module)
        passed = all(case.find(kind) is None for kind in ("failure", "error", "skipped"))
        yield Row(f"{client} (Python)", _version(python, client), _docstring(path, case.get("name", "")), passed)


def _version(python: Path, package: str) -> str:
    if python == Path(sys.executable):
        return version(package)
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def _docstring(path: Path, test: str) -> str:
    """Return the docstring of a test, which cannot be imported here."""
    name = test.partition("[")[0]
    _, _, after = path.read_text(encoding="utf-8").partition(f"def {name}(")
    return after.partition('"""')[2].partition('"""')[0]


def _node(directory: Path) -> Iterator[Row]:
    modules = HERE / "js"
    report = directory / "node.xml"
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--silent"], check=True, cwd=modules)
    for file in sorted(modules.glob("*.test.js")):
        options = ["--test", "--test-reporter=junit", f"--test-reporter-destination={report}"]
        subprocess.run(["node", *options, file], check=False, cwd=modules)
        for case in ElementTree.parse(report).iter("testcase"):
            client, what = _JS.get(file.name.partition(".")[0]), case.get("name", "")
            if client is None:
                client, _, what = what.partition(": ")
            manifest = modules / "node_modules" / client.partition(" ")[0] / "package.json"
            number = json.loads(manifest.read_text())["version"]
            yield Row(f"{client} (Node)", number, what, case.find("failure") is None)


if __name__ == "__main__":
    sys.exit(main())
