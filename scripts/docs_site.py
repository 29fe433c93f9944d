"""What MkDocs has to be told of this repository: pages beside docs/, and links that leave docs/."""

import re
from pathlib import Path
from posixpath import normpath, relpath
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Files outside docs/, and the pages that they become.
_BESIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SKILL.md": "assistants.md",
    "examples/tickets/README.md": "example.md",
    "references/README.md": "references.md",
}
_PAGES = {page: source for source, page in _BESIDE.items()}
_LINK = re.compile(r"\[([^\]\n]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)


def on_config(config: Any) -> Any:
    """Leave out of the navigation what this checkout does not have; a page outside of it is an error elsewhere."""
    config.nav = [each for each in map(_present, config.nav) if each]
    return config


def _present(entry: Any) -> Any:
    ((title, value),) = entry.items()
    if isinstance(value, list):
        kept = [each for each in map(_present, value) if each]
        return {title: kept} if kept else None
    return entry if value in _PAGES or (ROOT / "docs" / value).is_file() else None


def on_files(files: Files, config: Any) -> Files:
    """Add the pages beside docs/."""
    for source, page in _BESIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:  # noqa: ARG001
    """Turn links between files of the repository into links between pages."""
    name = page.file.src_uri
    source = _PAGES.get(name, f"docs/{name}")

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], normpath(f"{source}/../{found[2]}"), found[3] or ""
        if not (ROOT / target).exists():
            raise PluginError(f"{source} links to {found[2]}, which is not there; correct the link.")
        if target.startswith("docs/") or target in _BESIDE:
            goal = _BESIDE.get(target, target.removeprefix("docs/"))
            return f"[{text}]({relpath(goal, normpath(f'{name}/..'))}{anchor})"
        # What is no page is named, for whoever has the repository.
        return f"{text} (`{target}`)"

    # Links in code are none.
    parts = _CODE.split(markdown)
    return "".join(part if index % 2 else _LINK.sub(link, part) for index, part in enumerate(parts))
