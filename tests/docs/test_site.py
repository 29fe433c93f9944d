"""Protects: the documentation builds without a broken link, and reading it sends no request anywhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_ELSEWHERE = ("http:", "https:", "//", "data:text/html")


class Requests(HTMLParser):
    """Collects what a browser would load by itself: everything that is no link to be clicked."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            loads = name in ("src", "srcset", "poster", "action", "data") or (
                name == "href" and tag not in ("a", "area")
            )
            if loads and value and dict(attrs).get("rel") != "canonical":
                self.found.append(value)


def build(where: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(where)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("site")
    built = build(where)
    assert built.returncode == 0, built.stderr
    return where


def test_every_page_is_there(site: Path) -> None:
    for source in (ROOT / "docs").rglob("*.md"):
        page = source.relative_to(ROOT / "docs").with_suffix(".html")
        assert (site / (page.parent / "index.html" if page.stem == "README" else page)).is_file(), page
    for name in ("index.html", "contributing.html", "changelog.html", "references.html", "example.html"):
        assert (site / name).is_file()


def test_reading_it_sends_no_request(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loads = Requests(page.read_text("utf-8")).found
        assert loads, page
        assert not [value for value in loads if value.startswith(_ELSEWHERE)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(https?:|//)|@import", sheet.read_text("utf-8")), sheet


@pytest.mark.parametrize("broken", ["[x](missing.md)", "[x](export.md#no-such-heading)", "[x](../no/such/file.py)"])
def test_a_broken_link_fails_the_build(tmp_path: Path, broken: str) -> None:
    whole = "mkdocs.yml scripts docs README.md CONTRIBUTING.md CHANGELOG.md SKILL.md examples references benchmarks"
    for name in whole.split():
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs").unlink()
    (tmp_path / "docs").mkdir()
    for entry in (ROOT / "docs").iterdir():
        (tmp_path / "docs" / entry.name).symlink_to(entry)
    page = tmp_path / "docs" / "sampling.md"
    text = page.read_text("utf-8")
    page.unlink()
    page.write_text(f"{text}\n{broken}\n", encoding="utf-8")
    result = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert result.returncode != 0 and "sampling.md" in result.stderr
