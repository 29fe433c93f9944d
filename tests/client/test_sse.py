"""Protects the event parser: the same events however the bytes are cut, and a bound on what is held."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneserve.client import ProtocolError, SseParser

LINE_TEXT = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=8)
LINE_ENDS = st.sampled_from(["\n", "\r", "\r\n"])


def parse(*chunks: bytes, limit: int = 10_000) -> list[str]:
    parser = SseParser(limit)
    return [event for chunk in chunks for event in parser.feed(chunk)]


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    """Draw a stream of events with noise between, and the data they carry."""
    text, events = "", []
    end = draw(LINE_ENDS)
    for lines in draw(st.lists(st.lists(LINE_TEXT, min_size=1, max_size=3), max_size=5)):
        noise = draw(st.sampled_from(["", f": {draw(LINE_TEXT)}{end}", f"id: 7{end}", f"retry{end}", end]))
        text += noise + "".join(f"data: {line}{end}" for line in lines) + end
        events.append("\n".join(lines))
    return text.encode(), events


@given(streams(), st.lists(st.integers(0, 200)))
def test_events_do_not_depend_on_where_the_bytes_are_cut(stream: tuple[bytes, list[str]], cuts: list[int]) -> None:
    text, events = stream
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    assert parse(*(text[start:end] for start, end in pairwise(edges))) == events


@given(st.binary(max_size=60) | st.text(st.sampled_from("data: x\r\n\ufeff"), max_size=60).map(str.encode))
def test_any_bytes_are_read_alike_whole_and_one_by_one(data: bytes) -> None:
    def outcome(chunks: list[bytes]) -> list[str] | str:
        try:
            return parse(*chunks, limit=40)
        except ProtocolError as error:
            return str(error)

    assert outcome([data]) == outcome([bytes([byte]) for byte in data])


@pytest.mark.parametrize(
    ("text", "events"),
    [
        (b"data: a\n\n", ["a"]),
        (b"data:a\n\n", ["a"]),
        (b"data:  a\n\n", [" a"]),
        (b"data: a\ndata: b\n\n", ["a\nb"]),
        (b"data\n\n", [""]),
        (b"data: a\r\n\r\ndata: b\r\r", ["a", "b"]),
        (b"\xef\xbb\xbfdata: a\n\n", ["a"]),
        (b": waiting\n\n: waiting\n\n", []),
        (b"event: x\n\n", []),
        (b"Data: a\n\n", []),
        (b"data: never ended\n", []),
        ("data: naïve 🙂\u2028\n\n".encode(), ["naïve 🙂\u2028"]),
    ],
)
def test_events_follow_the_standard(text: bytes, events: list[str]) -> None:
    assert parse(text) == events


@pytest.mark.parametrize("text", [b"data: " + b"x" * 100, b"data: x\n" * 20, b"data\n" * 40, b":" * 101])
def test_an_event_that_grows_without_end_is_refused(text: bytes) -> None:
    with pytest.raises(ProtocolError, match="larger than 100 bytes"):
        parse(text, limit=100)


def test_many_small_events_are_no_large_one() -> None:
    assert len(parse(b"data: x\n\n: y\n" * 1000, limit=100)) == 1000


def test_bytes_that_are_not_utf_8_are_refused() -> None:
    with pytest.raises(ProtocolError, match="not UTF-8"):
        parse(b"data: \xff\n\n")
