"""Reads rows of text files: CSV, TSV and JSON lines, cut by byte offsets and streamed."""

import codecs
import csv
import hashlib
import io
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from clipmill.metadata.schema import URL
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.ingest._columns import require
from clipmill.stages.ops.tables.dotted import value_at
from clipmill.stages.ops.tables.pools import Values, in_batches, json_object

DELIMITER = {"csv": ",", "tsv": "\t", "txt": "\t", "token": "\t"}
JSON_LINES = ("jsonl", "ndjson", "json")
PACKED = (".gz", ".bz2", ".zst")
PLAIN_SUFFIXES = tuple(f"{kind}{pack}" for kind in (".txt", ".token") for pack in ("", *PACKED))
TEXT_SUFFIXES = tuple(
    f".{kind}{pack}" for kind in ("csv", "tsv", *JSON_LINES) for pack in ("", *PACKED)
)
HEAD_BYTES = 4 << 20  # read of a file of which the first rows are asked for
HEADER_BYTES = 1 << 20  # no header of a CSV file is longer
BLOCK_BYTES = 16 << 20  # no row of a CSV file may be longer
MAX_LINE_BYTES = 16 << 20  # of JSON, with its end: a link and captions, not pictures
BOM = b"\xef\xbb\xbf"
WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")  # of UTF-16, as spreadsheets write it

# Kept, to be freed here: Arrow's thread may free it late, and cannot once Python has ended.
_LAST_READER: list[pacsv.CSVStreamingReader] = []

Rows = tuple[Mapping[str, Values], pa.Array]  # columns, and the text of rows no parser reads


@dataclass(frozen=True)
class Dialect:
    """The format of a text file, as far as its name and first bytes do not tell it."""

    quoted: bool = True
    delimiter: str | None = None  # default: by the file's name
    columns: tuple[str, ...] = ()  # in order, of a file without a header
    encoding: str | None = None  # default: UTF-8, or UTF-16 if a file begins as such
    max_line_bytes: int = MAX_LINE_BYTES  # of JSON

    @classmethod
    def set_by(cls, stage: Any) -> "Dialect":
        """Returns the dialect by the settings of a stage, which have the same names."""
        return cls(**{name: getattr(stage, name) for name in cls.__dataclass_fields__})

    def check(self) -> None:
        """Raises RecipeError for a delimiter or an encoding that there is not."""
        if self.delimiter and (len(self.delimiter) != 1 or not self.delimiter.isascii()):
            do = 'write one character, as delimiter: ";" or delimiter: "\\t"'
            raise RecipeError(repr(self.delimiter), "key `delimiter`", do)
        try:
            codecs.lookup(self.encoding or "utf-8")
        except LookupError as error:
            do = "write one that Python knows: utf-8, cp1252, latin-1, utf-16"
            raise RecipeError(f"{error}", "key `encoding`", do) from error

    def of(self, path: str, header: Sequence[str] = ()) -> "Dialect":
        """Returns the dialect of one file: no quotes in JSON, nor in a plain list of one column."""
        kind = kind_of(path)
        is_plain = kind == "txt" and len(header) == 1
        return replace(
            self,
            quoted=self.quoted and kind in DELIMITER and not is_plain,
            delimiter=self.delimiter or DELIMITER.get(kind),
        )


def scan_text(
    storage: Storage,
    file: Mapping[str, Any],
    columns: Mapping[str, str],
    shard_rows: int | None,
    dialect: Dialect,
) -> list[dict[str, Any]]:
    """Returns a source for each `shard_rows` rows, by byte offsets; without it, one for the first.

    A file in UTF-16 or a compressed one is one source, because it cannot be entered midway.
    """
    where = f"{storage}/{file['path']}"
    source = {"path": file["path"], "digest": file["digest"]}
    kind = kind_of(file["path"])
    dialect = dialect.of(file["path"])
    header: list[str] = []
    start = 0
    try:
        with open_range(storage, file["path"], 0, None) as stream:
            if stream.peek(2)[:2] in WIDE_BOMS and not wide(dialect.encoding):
                dialect = replace(dialect, encoding="utf-16")
                source["encoding"] = "utf-16"
        with open_range(storage, file["path"], 0, None, wide(dialect.encoding)) as stream:
            if kind in DELIMITER:
                header, start = read_header(stream, dialect)
            elif stream.read(4096).lstrip(BOM + b" \t\r\n").startswith(b"["):
                do = "write one JSON object a line: jq -c '.[]' pool.json > pool.jsonl"
                raise StageError("a JSON array", where, do)
        dialect = dialect.of(file["path"], header)
        offsets: list[int | None] = [start, None]
        is_packed = file["path"].lower().endswith(PACKED)
        if not is_packed and not wide(dialect.encoding):
            stop = file["size"] if shard_rows else min(file["size"], start + HEAD_BYTES)
            with open_range(storage, file["path"], start, stop) as stream:
                delimiter = (dialect.delimiter or ",") if dialect.quoted else None
                starts, size = row_starts(stream, shard_rows or 1, delimiter)
            if shard_rows:
                offsets = [*(start + offset for offset in starts), start + size]
            elif stop < file["size"] and len(starts) > 1:
                offsets = [start, start + starts[-1]]
    except OSError:
        return [{**source, "start": 0, "stop": None, "header": []}]  # reading it fails its shard
    except UnicodeError as error:
        do = "write the encoding that the file has, as `encoding: cp1252`, or save it as UTF-8"
        raise StageError(f"no {dialect.encoding}: {error}", where, do) from error
    if header or start:  # an empty file has no rows that lack a column
        require(columns, header, where)
    return [
        {**source, "start": start, "stop": stop, "header": header}
        for start, stop in pairwise(offsets)
    ]


def text_rows(
    storage: Storage, source: Mapping[str, Any], columns: Sequence[str], dialect: Dialect
) -> Iterator[Rows]:
    """Yields the rows of one source, streamed."""
    kind = kind_of(source["path"])
    dialect = dialect.of(source["path"], source["header"])
    encoding = source.get("encoding") or dialect.encoding
    with open_range(storage, source["path"], source["start"], source["stop"], encoding) as stream:
        if kind in JSON_LINES:
            yield from json_rows(stream, columns, dialect.max_line_bytes)
        else:
            yield from csv_rows(stream, source["header"], columns, dialect)


def row_starts(
    stream: IO[bytes], every: int, delimiter: str | None, block_bytes: int = BLOCK_BYTES
) -> tuple[list[int], int]:
    """Returns the offsets at which rows 0, every, 2 * every … start, and the stream's length.

    A row ends at a line feed; with a `delimiter`, at one that no quoted field holds.
    """
    starts, rows, offset, is_open = [0], 0, 0, False
    while block := stream.read(block_bytes) + stream.readline(BLOCK_BYTES):
        byte_N = np.frombuffer(block, np.uint8)
        end = np.flatnonzero(byte_N == ord("\n"))
        if delimiter:
            bounds = _bounds_of_fields(byte_N, delimiter, is_open)
            end = end[(np.searchsorted(bounds, end) + is_open) % 2 == 0]
            is_open ^= bool(len(bounds) % 2)
        first = (-rows - 1) % every  # the end after which row k * every starts
        starts += (offset + end[first::every] + 1).tolist()
        rows += len(end)
        offset += len(block)
    return [start for start in starts if start < offset] or [0], offset


def _bounds_of_fields(byte_N: np.ndarray, delimiter: str, is_open: bool) -> np.ndarray:
    """Returns the places of quotes that open and close fields, in turns, of a block of whole lines.

    A quote opens a field at its start alone, a doubled one closes it and opens it again; any other
    quote outside is text, as in `a 5" screen`. `is_open`: the block begins within a quoted field.
    """
    place = np.flatnonzero(byte_N == ord('"'))
    before = byte_N[place - 1]
    is_start = (place == 0) | np.isin(before, [*f"{delimiter}\n\r".encode()])
    if (is_start | (before == ord('"')))[int(is_open) :: 2].all():
        return place  # no quote is text
    bounds, closed = [], -1
    for quote, opens in zip(place.tolist(), is_start.tolist(), strict=True):
        if is_open or opens or closed == quote - 1:
            closed = quote if is_open else -1
            is_open = not is_open
            bounds.append(quote)
    return np.array(bounds, np.int64)


def read_header(stream: io.BufferedReader, dialect: Dialect) -> tuple[list[str], int]:
    """Returns the column names of a CSV file, and where its rows begin; ([], 0) if it is empty.

    The names stand in the first row, or are given. A first row that is one link is no header: the
    file is a plain list, and its column is `url`.
    """
    block = stream.read(HEADER_BYTES)
    mark = len(BOM) if block.startswith(BOM) else 0
    if dialect.columns:
        return list(dialect.columns), mark
    # A character a byte: the row's end is a place of the file, also after an old Mac's return.
    text = io.StringIO(block[mark:].decode("latin-1"), newline="")
    quoting: Any = csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE
    try:
        header = next(csv.reader(text, delimiter=dialect.delimiter or ",", quoting=quoting), [])
    except csv.Error:  # not text: as a header without names
        header = []
    if len(header) == 1 and "://" in header[0]:
        return [URL.name], mark
    encoding = dialect.encoding if dialect.encoding and not wide(dialect.encoding) else "utf-8"
    names = [name.encode("latin-1").decode(encoding, errors="replace") for name in header]
    return names, mark + text.tell()


def open_range(
    storage: Storage, path: str, start: int, stop: int | None, encoding: str | None = None
) -> io.BufferedReader:
    """Opens the bytes from start to stop, or to the end, unpacked; converts `encoding` to UTF-8."""
    if stop is None:
        stream = storage.fs.open_input_stream(storage.locate(path))  # unpacks .gz, .bz2, .zst
    else:
        stream = storage.open(path).get_stream(start, stop - start)
    if stop is None and not wide(encoding):
        stream.read(start)
    if encoding:
        stream = pa.transcoding_input_stream(stream, encoding, "utf-8")
    if stop is None and wide(encoding):
        stream.read(start)
    return io.BufferedReader(stream, 1 << 20)


def wide(encoding: str | None) -> str | None:
    """Returns the encoding if it is UTF-16 or 32: offsets then count bytes after conversion."""
    name = codecs.lookup(encoding or "utf-8").name
    return encoding if name.startswith(("utf-16", "utf-32")) else None


def csv_rows(
    stream: io.BufferedReader,
    header: Sequence[str],
    columns: Sequence[str],
    dialect: Dialect,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[Rows]:
    """Yields columns as bytes, in batches; a row with too few or too many fields keeps its place.

    An empty field is null, a quoted one the empty string. Without `header` it is the first row.
    """
    bad: deque[tuple[int, str]] = deque()
    first = 1 if header else 2  # pyarrow counts from 1, and its own header too

    def note(row: pacsv.InvalidRow) -> str:
        bad.append((row.number - first, row.text))
        return "skip"

    options = (
        pacsv.ReadOptions(use_threads=False, block_size=block_bytes, column_names=header),
        pacsv.ParseOptions(
            delimiter=dialect.delimiter or ",",
            quote_char='"' if dialect.quoted else False,
            newlines_in_values=dialect.quoted,
            invalid_row_handler=note,
        ),
        pacsv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.binary()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    try:  # the raw stream is Arrow's own: its thread reads ahead, also while Python ends
        reader = pacsv.open_csv(stream.raw, *options)
    except pa.ArrowInvalid as error:
        if "Empty CSV file" in str(error):
            return
        raise
    _LAST_READER[:] = [reader]
    row = 0
    for batch in reader:
        skipped: list[tuple[int, str]] = []
        while bad and bad[0][0] < row + len(batch) + len(skipped):
            skipped.append(bad.popleft())
        yield _with_skipped(pa.Table.from_batches([batch]), row, skipped)
        row += len(batch) + len(skipped)
    if bad:
        yield _with_skipped(reader.schema.empty_table(), row, bad)


def json_rows(
    stream: IO[bytes], columns: Sequence[str], max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[Rows]:
    """Yields columns as Python values in batches; a line that is no JSON object keeps its place."""
    lines = (line for line in lines_of(stream, max_line_bytes) if line.strip())
    for batch in in_batches(lines, len):
        # A parser of blocks would fail at one bad line.
        objects = [json_object(line) for line in batch]
        pairs = zip(batch, objects, strict=True)
        raw = [line.decode(errors="replace") if row is None else None for line, row in pairs]
        values = {n: [value_at(row, n) if row else None for row in objects] for n in columns}
        yield values, pa.array(raw, pa.string())


def lines_of(stream: IO[bytes], max_bytes: int) -> Iterator[bytes]:
    """Yields each line; for one above `max_bytes` its size and hash: it may be of gigabytes."""
    for line in iter(partial(stream.readline, max_bytes + 1), b""):
        if len(line) <= max_bytes:
            yield line
            continue
        size, whole = len(line), hashlib.sha256(line)
        while not line.endswith(b"\n") and (line := stream.readline(1 << 20)):
            size += len(line)
            whole.update(line)
        digest = whole.hexdigest()
        yield f"a line of {size:,} bytes, at most {max_bytes:,} are read, SHA-256 {digest}".encode()


def unparsed_nowhere(table: pa.Table) -> Rows:
    """Returns rows of a Parquet file, all marked as parsed: its parser reads all or none."""
    columns = dict(zip(table.column_names, table.columns, strict=True))
    return columns, pa.nulls(len(table), pa.string())


def _with_skipped(table: pa.Table, row: int, skipped: Sequence[tuple[int, str]]) -> Rows:
    """Returns the table with null rows for skipped ones; its first row is stream row `row`."""
    raw = pa.nulls(len(table), pa.string())
    if skipped:
        is_skipped = np.zeros(len(table) + len(skipped), bool)
        is_skipped[[number - row for number, _ in skipped]] = True
        table = table.take(pa.array(np.cumsum(~is_skipped) - 1, mask=is_skipped))
        texts = pa.array([text for _, text in skipped], pa.string())
        raw = texts.take(pa.array(np.cumsum(is_skipped) - 1, mask=~is_skipped))
    return dict(zip(table.column_names, table.columns, strict=True)), raw


def kind_of(name: str) -> str:
    """Returns the format by suffix: csv, tsv, txt, jsonl; without the suffix of a compression."""
    name = name.lower()
    for pack in PACKED:
        name = name.removesuffix(pack)
    return name.rpartition(".")[2]
