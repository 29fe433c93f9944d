"""The page around a report."""

from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

from tuneserve._version import __version__
from tuneserve.errors import OutputError
from tuneserve.report._html import Html, element, joined

# Should anything ever get past the escaping, it neither runs nor asks for anything.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(title: str, lead: str, sections: Iterable[Html]) -> str:
    """Return a whole document: a heading, what it is about in one line, and its sections."""
    style = files(__package__).joinpath("style.css").read_text("utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", Html(style)),
    )
    header = element("header", element("h1", title), element("p", lead))
    footer = element("footer", f"made by tuneserve {__version__}")
    body = element("body", element("main", header, *sections, footer))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def section(heading: str, *children: str) -> Html:
    """Return a part of the page under a heading."""
    return element("section", element("h2", heading), *children)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> Html:
    """Return a table; with ``numbers``, all columns but the first are aligned to the right."""
    head = element("thead", element("tr", *(element("th", heading, scope="col") for heading in headings)))
    body = element("tbody", *(element("tr", *(element("td", cell) for cell in row)) for row in rows))
    # Wide tables scroll by themselves instead of making the page wide.
    return element("div", element("table", head, body, class_="numbers" if numbers else "words"), class_="scroll")


def check_new(path: Path) -> None:
    """Check, before long work, that a page can be written later.

    Raises:
        OutputError: there is something already, or no directory for it.
    """
    if path.exists() or path.is_symlink():
        raise OutputError(f"{path} is there already; name a new file.")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent} is no directory; make it first, or name another file.")


def write_page(path: Path, document: str) -> None:
    """Write a page into a new file.

    Raises:
        OutputError: there is something already, or it cannot be written.
    """
    check_new(path)
    try:
        with path.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(document)
    except FileExistsError:
        raise OutputError(f"{path} is there already; name a new file.") from None
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written ({error.strerror}); name another file.") from None


def legend(names: Iterable[tuple[str, str]]) -> Html:
    """Return the names of what is drawn, each with the class that gives its colour."""
    return element("p", *(element("span", element("i", class_=kind), name) for kind, name in names), class_="legend")


def figure(caption: str, drawing: Html, *notes: Html) -> Html:
    """Return a drawing with its caption above and notes below."""
    return element("figure", element("figcaption", caption), drawing, joined(notes))
