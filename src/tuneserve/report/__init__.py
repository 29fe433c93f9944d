"""Reports as HTML pages of one file each: what they show is escaped, and they ask for nothing from anywhere."""

from tuneserve.report._bars import Bar, Part, bars
from tuneserve.report._html import Html, element, joined
from tuneserve.report._page import check_new, page, section, table, write_page
from tuneserve.report._plot import Line, Series, plot

__all__ = [
    "Bar",
    "Html",
    "Line",
    "Part",
    "Series",
    "bars",
    "check_new",
    "element",
    "joined",
    "page",
    "plot",
    "section",
    "table",
    "write_page",
]
