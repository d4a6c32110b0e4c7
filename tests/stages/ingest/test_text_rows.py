"""Cuts of text files against Python's csv module, whatever the fields hold."""

import csv
import io
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clipmill.stages.ingest._text_rows import Dialect, csv_rows, lines_of, read_header, row_starts
from clipmill.stages.ops.tables.pools import json_object

FIELD = st.text(st.sampled_from('a,"\n\t é'), max_size=6)
TABLE = st.lists(st.lists(FIELD, min_size=2, max_size=2), min_size=1, max_size=8)


def written(rows: list[list[str]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


@settings(deadline=None)
@given(rows=TABLE, every=st.integers(1, 4), block=st.integers(1, 9))
def test_cuts_fall_where_the_csv_module_ends_every_nth_row(rows, every, block):
    data = written(rows)
    assert read_in_parts(data, every, block) == [
        rows[i : i + every] for i in range(0, len(rows), every)
    ]


@settings(deadline=None)
@given(text=st.text(st.sampled_from('a,"\n'), max_size=30), block=st.integers(1, 9))
@example(text='a 5" screen,b\n"c\nd",e\n', block=7)
def test_a_quote_within_a_field_is_text_and_no_cut_falls_in_a_quoted_field(text, block):
    assert [row for part in read_in_parts(text.encode(), 1, block) for row in part] == [
        *csv.reader(lines(text))
    ]


def read_in_parts(data: bytes, every: int, block: int) -> list[list[list[str]]]:
    starts, size = row_starts(io.BytesIO(data), every, ",", block_bytes=block)
    assert size == len(data)
    parts = [data[a:b].decode() for a, b in zip(starts, [*starts[1:], size], strict=True)]
    return [[*csv.reader(lines(part))] for part in parts]


def lines(text: str) -> io.StringIO:
    return io.StringIO(text, newline="")


def read_all(data: bytes, delimiter: str = ",", **settings) -> list[list[str] | None]:
    """Every row as text, null as the empty string; None for a row that could not be parsed."""
    names = ["a", "b"]
    stream: Any = io.BufferedReader(io.BytesIO(data))
    rows: list[list[str] | None] = []
    for table, unparsed in csv_rows(stream, names, names, Dialect(delimiter=delimiter), **settings):
        fields = zip(*(table[name].to_pylist() for name in names), strict=True)  # type: ignore[union-attr]  # CSV gives Arrow
        parsed = [[(field or b"").decode() for field in row] for row in fields]
        rows += [
            None if bad else row for row, bad in zip(parsed, unparsed.to_pylist(), strict=True)
        ]
    return rows


@pytest.mark.slow("a hundred drawn files")
@settings(deadline=None)
@given(rows=TABLE, delimiter=st.sampled_from(",\t"))
def test_rows_are_those_of_the_csv_module(rows, delimiter):
    assert read_all(written(rows, delimiter), delimiter) == rows


ANY_WIDTH = st.lists(
    st.text(st.sampled_from('a"é'), min_size=1, max_size=4), min_size=1, max_size=4
)


@settings(deadline=None)
@given(rows=st.lists(ANY_WIDTH))
def test_a_row_of_any_width_keeps_its_place_however_the_blocks_fall(rows):
    found = read_all(written(rows), block_bytes=64)
    assert found == [row if len(row) == 2 else None for row in rows]


@pytest.mark.parametrize(
    ("data", "names", "size"),
    [
        (b"", [], 0),
        (b"url,text\na,b\n", ["url", "text"], 9),
        (b'"u,rl","te\nxt"\n', ["u,rl", "te\nxt"], 15),
        (b"\xef\xbb\xbfurl,text", ["url", "text"], 11),
        (b'"' + b"x" * (1 << 18), [], (1 << 18) + 1),
        (b"url,text\r\na,b\r\n", ["url", "text"], 10),
        (b"url,text\ra,b\rc,d\r", ["url", "text"], 9),
        (b"url,text\ra,b\r\nc,d\r\n", ["url", "text"], 9),
        (b"url,text\r\n", ["url", "text"], 10),
        (b'url,wide"\na,b\nc,d\n', ["url", 'wide"'], 10),
    ],
)
def test_the_header_is_the_first_row(data, names, size):
    assert read_header(io.BufferedReader(io.BytesIO(data)), Dialect(delimiter=",")) == (names, size)


class Endless:
    """A line without an end, of which it counts what was asked for at once."""

    def __init__(self, size: int) -> None:
        self.left, self.most = size, 0

    def readline(self, size: int = -1) -> bytes:
        self.most = max(self.most, size if size >= 0 else self.left)
        size = min(self.left, size if size >= 0 else self.left)
        self.left -= size
        return bytes(size)


def test_a_line_above_the_limit_is_not_held_in_memory():
    stream: Any = Endless(20_000_000)
    assert [line[:25] for line in lines_of(stream, 1000)] == [b"a line of 20,000,000 bytes"[:25]]
    assert (stream.left, stream.most) == (0, 1 << 20)


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_of_just_the_limit_is_read(end):
    data = b"x" * 9 + b"\n" + b"y" * (10 - len(end)) + end
    assert list(lines_of(io.BytesIO(data), 10)) == [b"x" * 9 + b"\n", data[10:]]


def test_json_that_takes_all_memory_is_none(monkeypatch):
    def taking(line: bytes) -> None:
        raise MemoryError

    monkeypatch.setattr("json.loads", taking)
    assert json_object(b"{}") is None
