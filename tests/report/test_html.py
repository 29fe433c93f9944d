"""Protects: whatever users bring is text in a report, never markup, and a report asks for nothing from anywhere."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from tuneserve.errors import OutputError
from tuneserve.report import (
    Bar,
    Html,
    Line,
    Part,
    Series,
    bars,
    check_new,
    element,
    page,
    plot,
    section,
    table,
    write_page,
)

HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'&<!--]]>\x00\u202e"


class Tags(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: dict[str, set[str]] = {}
        self.text = ""
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, set()).add(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def whole(text: str) -> str:
    """Return a page with ``text`` in every place that takes text."""
    return page(
        text,
        text,
        [
            section(text, text, table([text], [[text, element("b", text, title=text)]])),
            plot(text, [Series(text, [(1, 2), (2, 3)], 0)], x=text, y=text, lines=[Line(text, 2.5)], note=text),
            bars(text, [Bar(text, [Part(text, 1.0, text)], text)], limit=2, limit_name=text, whole=3, note=text),
        ],
    )


def test_text_is_never_markup() -> None:
    plain, hostile = Tags(whole("plain")), Tags(whole(HOSTILE))
    assert hostile.tags == plain.tags and "script" not in hostile.tags and "img" not in hostile.tags
    assert hostile.attributes.keys() == plain.attributes.keys()
    assert "alert(1)" in hostile.text
    assert "\x00" not in whole(HOSTILE) and "\u202e" not in whole(HOSTILE) and "⟨U+202E⟩" in whole(HOSTILE)


def test_a_page_asks_for_nothing() -> None:
    document = whole("x")
    found = Tags(document)
    assert not found.attributes.keys() & {"src", "href", "onload", "action", "data", "style"}
    assert any("default-src 'none'" in value for value in found.attributes["content"])
    assert "url(" not in document and "@import" not in document and "http" not in document.replace("http-equiv", "")


def test_only_markup_is_taken_as_it_is() -> None:
    assert element("p", "<b>", Html("<i>")) == "<p>&lt;b&gt;<i></p>"
    assert (
        element("text", x=1.25, text_anchor="end", class_='"')
        == '<text x="1.25" text-anchor="end" class="&quot;"></text>'
    )


def test_a_page_is_only_written_into_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(path, "x")
    for taken in (path, tmp_path):
        with pytest.raises(OutputError, match="already"):
            check_new(taken)
    with pytest.raises(OutputError, match="is no directory"):
        write_page(tmp_path / "missing" / "page.html", "x")
    assert path.read_text() == "x"
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="already"):
        write_page(dangling, "x")
