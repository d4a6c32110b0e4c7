"""Rows of text files: CSV, TSV and JSON lines, cut by byte offsets and read in a stream."""

import csv
import io
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from metadata.storage import Storage
from pipeline.errors import StageError
from stages.ingest._columns import require
from stages.ops.tables import Values, in_batches

DELIMITER = {"csv": ",", "tsv": "\t"}
JSON_LINES = ("jsonl", "ndjson", "json")
PACKED = (".gz", ".bz2", ".zst")
TEXT_SUFFIXES = tuple(
    f".{kind}{pack}" for kind in (*DELIMITER, *JSON_LINES) for pack in ("", *PACKED)
)
BLOCK_BYTES = 16 << 20  # no row of a CSV file may be longer
BOM = b"\xef\xbb\xbf"

Rows = tuple[Mapping[str, Values], pa.Array]  # columns, and the text of rows no parser reads


def scan_text(
    storage: Storage,
    file: Mapping[str, Any],
    asked: Mapping[str, str],
    shard_rows: int | None,
    quoted: bool,
) -> list[dict[str, Any]]:
    """A source for each `shard_rows` rows, by byte offsets; a compressed file is one source.

    Without `shard_rows` the file is not read for its offsets, and is one source too.
    """
    where = f"{storage}/{file['path']}"
    source = {"path": file["path"], "digest": file["digest"]}
    kind = _kind(file["path"])
    quoted = quoted and kind in DELIMITER
    header: list[str] = []
    start = 0
    try:
        with open_range(storage, file["path"], 0, None) as stream:
            if kind in DELIMITER:
                header, start = read_header(stream, DELIMITER[kind], quoted)
            elif stream.read(4096).lstrip().startswith(b"["):
                raise StageError("a JSON array", where, "write one JSON object a line")
        offsets: list[int | None] = [start, None]
        if shard_rows and not file["path"].lower().endswith(PACKED):
            with open_range(storage, file["path"], start, file["size"]) as stream:
                starts, size = row_starts(stream, shard_rows, quoted)
            offsets = [*(start + offset for offset in starts), start + size]
    except OSError:
        return [{**source, "start": 0, "stop": None, "header": []}]  # reading it fails its shard
    if start:  # a file of no bytes has no rows that lack a column
        require(asked, header, where)
    return [
        {**source, "start": start, "stop": stop, "header": header}
        for start, stop in pairwise(offsets)
    ]


def text_rows(
    storage: Storage, source: Mapping[str, Any], columns: Sequence[str], quoted: bool
) -> Iterator[Rows]:
    """The rows of one source, streamed."""
    kind = _kind(source["path"])
    with open_range(storage, source["path"], source["start"], source["stop"]) as stream:
        if kind in JSON_LINES:
            yield from json_rows(stream, columns)
        else:
            yield from csv_rows(stream, source["header"], columns, DELIMITER[kind], quoted)


def row_starts(
    stream: IO[bytes], every: int, quoted: bool, block_bytes: int = BLOCK_BYTES
) -> tuple[list[int], int]:
    """Offsets at which rows 0, every, 2 * every ... start, and the stream's length.

    A row ends at a line feed with an even number of quotes before it: a quoted field may hold line
    feeds, and an escaped quote counts twice. Memory is one block.
    """
    starts, rows, offset, quotes = [0], 0, 0, 0
    while block := stream.read(block_bytes):
        byte = np.frombuffer(block, np.uint8)
        end = np.flatnonzero(byte == ord("\n"))
        if quoted:
            quote = np.flatnonzero(byte == ord('"'))
            end = end[(np.searchsorted(quote, end) + quotes) % 2 == 0]
            quotes += len(quote)
        first = (-rows - 1) % every  # the end after which row k * every starts
        starts += (offset + end[first::every] + 1).tolist()
        rows += len(end)
        offset += len(block)
    if len(starts) > 1 and starts[-1] == offset:
        starts.pop()
    return starts, offset


def read_header(stream: IO[bytes], delimiter: str, quoted: bool) -> tuple[list[str], int]:
    """Column names in the first row of a CSV file, and where the rows begin; ([], 0) of nothing."""
    block = stream.read(BLOCK_BYTES)
    starts, _ = row_starts(io.BytesIO(block), 1, quoted)
    size = starts[1] if len(starts) > 1 else len(block)
    text = io.StringIO(block[:size].removeprefix(BOM).decode(errors="replace"), newline="")
    quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    try:
        return next(csv.reader(text, delimiter=delimiter, quoting=quoting), []), size
    except csv.Error:  # no text at all: as good as a header without names
        return [], size


def open_range(storage: Storage, path: str, start: int, stop: int | None) -> io.BufferedReader:
    """The bytes from start to stop; without a stop, all from start on, unpacked."""
    if stop is None:
        stream = storage.fs.open_input_stream(storage.locate(path))  # unpacks .gz, .bz2, .zst
        stream.read(start)
    else:
        stream = storage.open(path).get_stream(start, stop - start)
    return io.BufferedReader(stream, 1 << 20)


def csv_rows(
    stream: io.BufferedReader,
    header: Sequence[str],
    columns: Sequence[str],
    delimiter: str,
    quoted: bool,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[Rows]:
    """Columns as bytes, in batches; a row with too few or too many fields keeps its place.

    An empty field is null, a quoted empty field is the empty string. Without a header, the first
    row is one.
    """
    if not stream.peek(1):
        return  # pyarrow calls it an error
    bad: deque[tuple[int, str]] = deque()
    first = 1 if header else 2  # pyarrow counts from 1, and its own header too

    def note(row: pacsv.InvalidRow) -> str:
        bad.append((row.number - first, row.text))
        return "skip"

    reader = pacsv.open_csv(
        stream,
        pacsv.ReadOptions(use_threads=False, block_size=block_bytes, column_names=header),
        pacsv.ParseOptions(
            delimiter=delimiter,
            quote_char='"' if quoted else False,
            newlines_in_values=quoted,
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
    row = 0
    for batch in reader:
        skipped: list[tuple[int, str]] = []
        while bad and bad[0][0] < row + len(batch) + len(skipped):
            skipped.append(bad.popleft())
        yield _with_skipped(pa.Table.from_batches([batch]), row, skipped)
        row += len(batch) + len(skipped)
    if bad:
        yield _with_skipped(reader.schema.empty_table(), row, bad)


def json_rows(stream: IO[bytes], columns: Sequence[str]) -> Iterator[Rows]:
    """Columns as Python values, in batches; a line that is not one JSON object keeps its place."""
    lines = (line for line in stream if line.strip())
    for batch in in_batches(lines, len):
        objects = [json_object(line) for line in batch]  # parsers of blocks spare no bad line
        raw = [
            line.decode(errors="replace") if it is None else None
            for line, it in zip(batch, objects, strict=True)
        ]
        yield (
            {name: [it.get(name) if it else None for it in objects] for name in columns},
            pa.array(raw, pa.string()),
        )


def _with_skipped(table: pa.Table, row: int, skipped: Sequence[tuple[int, str]]) -> Rows:
    """The table with null rows for skipped ones; its first row is number `row` of the stream."""
    raw = pa.nulls(len(table), pa.string())
    if skipped:
        is_skipped = np.zeros(len(table) + len(skipped), bool)
        is_skipped[[number - row for number, _ in skipped]] = True
        table = table.take(pa.array(np.cumsum(~is_skipped) - 1, mask=is_skipped))
        texts = pa.array([text for _, text in skipped], pa.string())
        raw = texts.take(pa.array(np.cumsum(is_skipped) - 1, mask=~is_skipped))
    return dict(zip(table.column_names, table.columns, strict=True)), raw


def _kind(name: str) -> str:
    """The format by suffix: csv, tsv, jsonl; without the suffix of a compression."""
    name = name.lower()
    for pack in PACKED:
        name = name.removesuffix(pack)
    return name.rpartition(".")[2]


def json_object(line: bytes) -> dict[str, Any] | None:
    """The JSON object in these bytes; None where there is none."""
    try:
        it = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return it if isinstance(it, dict) else None
