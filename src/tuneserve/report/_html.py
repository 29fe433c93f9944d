"""Elements of HTML and SVG; text becomes markup here and nowhere else."""

import re
from collections.abc import Iterable
from html import escape

# What a browser shows as something else than what the text says, or not at all: controls, and marks of direction.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ud800-\udfff\ufeff]")
_VOID = frozenset({"br", "meta"})


class Html(str):
    """Markup; every other string is text, which :func:`element` escapes."""

    __slots__ = ()


def markup(text: str) -> Html:
    """Return ``text`` escaped, with what cannot be seen in it shown as its code point; markup stays as it is."""
    if isinstance(text, Html):
        return text
    return Html(escape(_UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)))


def joined(children: Iterable[str]) -> Html:
    """Return one piece of markup after the other."""
    return Html("".join(markup(child) for child in children))


def element(tag: str, *children: str, **attributes: str | float) -> Html:
    """Return an element; ``class_`` is its class, and an underline within an attribute's name is a hyphen."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{markup(value if isinstance(value, str) else f"{value:.6g}")}"'
        for name, value in attributes.items()
    )
    if tag in _VOID:
        assert not children
        return Html(f"<{tag}{named}>")
    return Html(f"<{tag}{named}>{joined(children)}</{tag}>")
