"""Samples a table's files: the first rows, and the number of all rows."""

import csv
import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from clipmill.metadata.globs import FoundFile
from clipmill.metadata.limits import PARSE_ERRORS
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RecipeError, StageError, did_you_mean
from clipmill.pipeline.own_data.data import UnsureError
from clipmill.pipeline.own_data.layouts import PACKED
from clipmill.pipeline.own_data.roles import PATH
from clipmill.pipeline.planning.recipe import NO_TEXT
from clipmill.pipeline.planning.settings import stage_class

ROWS = 1000
HEAD = 64 << 10  # characters by which the form of a CSV is guessed
FEW = 20  # rows by which its delimiter is
BLOCK_BYTES = 4 << 20  # read of the first file's text
COUNTED_BYTES = 512 << 20  # lines are counted up to this size, else estimated
MOST_BAD = 20  # UTF-8 if at most one line in 20 has other bytes
COUNTED_FILES = 64  # rows are added up over the first Parquet files, else estimated
LINKS = ("http://", "https://")
WINDOWS = "cp1252"  # most likely encoding of text that is not UTF-8


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The first rows, at most 1,000, the number of all rows, and a text file's form."""

    table: pa.Table
    rows: int  # of all files
    is_exact: bool  # else `rows` is an estimate
    delimiter: str = ""
    has_header: bool = True
    is_quoted: bool = True
    encoding: str | None = None  # if it is neither UTF-8 nor UTF-16
    is_text: bool = False  # lines, as the above tell


def form_sample(storage: Storage, files: Sequence[FoundFile], table: str | None) -> Sample | None:
    """Samples files that `ingest.table` alone reads, as it does; None of text and Parquet."""
    read: Any = stage_class("ingest.table", "")
    sampled = []
    for file in files[:COUNTED_FILES]:
        where, names = f"{storage}/{file.name}", []
        try:
            names = read.names_in(storage, file.name)
            if len(names) > 1 and not table:
                do = f"say which: --table {shlex.quote(names[0])}"
                raise UnsureError("table", dict.fromkeys(names, ""), where, do)
            found = read.sample(storage, file.name, ROWS, table)
        except (pa.ArrowException, OSError) as error:
            if table and names and table not in names:
                do = did_you_mean(table, names, "tables here")
                raise RecipeError(f"no table '{table}'", where, do) from None
            raise _unreadable(storage, file, error) from None
        except StageError as error:  # here the data are an argument
            raise RecipeError(*error.args) from None
        if found is None:
            return None
        sampled.append(found)
    rows, first = sum(rows for _, rows in sampled), sampled[0][0]
    columns = map(read.python, first.columns)  # a list is of values of several types
    found = [_column(values) if isinstance(values, list) else values for values in columns]
    return Sample(
        table=_plain(pa.table(found, names=first.column_names)),
        rows=round(rows * len(files) / len(sampled)),
        is_exact=len(files) == len(sampled),
    )


def parquet_sample(storage: Storage, files: Sequence[FoundFile]) -> Sample:
    """Samples Parquet files."""
    batches: list[pa.RecordBatch] = []
    rows = taken = 0
    for file in files[:COUNTED_FILES]:
        try:
            with storage.open(file.name) as opened, pq.ParquetFile(opened) as parquet:
                rows += parquet.metadata.num_rows
                schema = parquet.schema_arrow
                batches_of = parquet.iter_batches(64, use_threads=False)
                while taken < ROWS and sum(b.nbytes for b in batches) < BLOCK_BYTES * 8:
                    if (batch := next(batches_of, None)) is None:
                        break
                    if batches and batch.schema != batches[0].schema:
                        break
                    batches.append(batch)
                    taken += len(batch)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(storage, file, error) from None
    all_rows = round(rows * len(files) / len(files[:COUNTED_FILES]))
    table = pa.Table.from_batches(batches) if batches else pa.Table.from_batches([], schema)
    return Sample(
        table=_plain(table.slice(0, ROWS)), rows=all_rows, is_exact=len(files) <= COUNTED_FILES
    )


def text_sample(storage: Storage, files: Sequence[FoundFile], suffix: str) -> Sample:
    """Samples CSV, TSV, JSON lines or plain lists."""
    files = [file for file in files if file.size] or files
    block, is_whole, encoding = _first_block(storage, files[0])
    where = f"{storage}/{files[0].name}"
    is_csv = not suffix.startswith((".json", ".ndjson"))
    table, parsed, form = _csv_form(block, suffix, where) if is_csv else (_json_table(block), 0, {})
    rows, is_exact = parsed, True
    if not (is_csv and is_whole and len(files) == 1):
        lines, is_exact = _count(storage, files, max(1, block.count("\n")) / max(1, len(block)))
        rows = max(0, lines - len(files) * form.get("has_header", False))
        is_exact = is_exact and not (parsed and '"' in block)  # quoted fields may hold line ends
    return Sample(
        table=_plain(table.slice(0, ROWS)),
        rows=rows,
        is_exact=is_exact,
        encoding=encoding,
        is_text=True,
        **form,
    )


def _first_block(storage: Storage, file: FoundFile) -> tuple[str, bool, str | None]:
    """Reads whole lines from a file's start; also whether that is all, and the encoding.

    The encoding is None for UTF-8, and for UTF-16 with a byte order mark.
    """
    where = f"{storage}/{file.name}"
    try:
        with storage.fs.open_input_stream(storage.locate(file.name)) as stream:  # decompresses
            block = bytes(stream.read(BLOCK_BYTES))
            is_whole = not stream.read(1)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(storage, file, error) from None
    if block[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = block.decode("utf-16", errors="replace")
        return (text if is_whole else text[: text.rfind("\n") + 1]), is_whole, None
    if b"\0" in block[:4096]:
        raise RecipeError("bytes that are no text", where, "give it the suffix of what it is")
    block = block if is_whole else block[: block.rfind(b"\n") + 1]
    text = block.removeprefix(b"\xef\xbb\xbf").decode(errors="replace")
    if "\r" in text and "\n" not in text:
        do = "write line feeds:  tr '\\r' '\\n' < OLD > NEW"
        raise RecipeError("lines that end in carriage returns alone", where, do)
    lines = text.splitlines()
    if sum("\ufffd" in line for line in lines) * MOST_BAD <= len(lines):
        return text, is_whole, None
    try:
        return block.decode(WINDOWS), is_whole, WINDOWS
    except UnicodeDecodeError as error:
        found = f"letters neither of UTF-8 nor of Windows ({WINDOWS}): byte {error.start:,}"
        do = "save it as UTF-8:  iconv -f ENCODING -t UTF-8 OLD > NEW"
        raise RecipeError(found, where, do) from None


def _csv_form(text: str, suffix: str, where: str) -> tuple[pa.Table, int, dict[str, Any]]:
    """Returns rows, their number with those that fit no table, and delimiter, header, quotes."""
    head = text[:HEAD]
    delimiter = _delimiter(head, suffix, where)
    is_quoted = delimiter == "," or _is_quoted(text, delimiter or "\0")
    first = next(iter(_rows(head, delimiter or "\0", is_quoted)), [])
    has_header = not any(
        value.strip().startswith(LINKS) or re.match(PATH, value) for value in first
    )
    names = first if has_header else [f"column {i + 1}" for i in range(len(first))]
    table = pa.table({name: pa.array([], pa.string()) for name in names})
    skipped = []

    def skip(row: pacsv.InvalidRow) -> str:
        skipped.append(row)
        return "skip"

    if text.strip():
        options = pacsv.ParseOptions(
            delimiter=delimiter or "\t",
            quote_char='"' if is_quoted else False,
            newlines_in_values=is_quoted,
            invalid_row_handler=skip,
        )
        table = _read_csv(text, options, names, has_header, where)
    form = {"delimiter": delimiter, "has_header": has_header, "is_quoted": is_quoted}
    return table, len(table) + len(skipped), form


def _rows(text: str, delimiter: str, is_quoted: bool) -> list[list[str]]:
    """Returns the rows of a text that hold something; a quoted field may span lines."""
    quoting: Any = csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE
    lines = io.StringIO(text, newline="")
    return [row for row in csv.reader(lines, delimiter=delimiter, quoting=quoting) if row]


def _delimiter(head: str, suffix: str, where: str) -> str:
    """Returns the sign that cuts most rows into as many fields as the first; "" for a list.

    RecipeError if a sign cuts the first row, and the others into other numbers of fields.
    """
    signs = ",;|\t" if suffix == ".csv" else "\t;|,"  # ties go to the suffix's delimiter
    if suffix == ".txt" and head.lstrip().startswith(LINKS):
        signs = "\t"  # a link may hold the others
    rows = {sign: _rows(head, sign, True)[:FEW] for sign in signs}
    even = {sign: [len(row) == len(rows[sign][0]) > 1 for row in rows[sign]] for sign in signs}
    best = max(signs, key=lambda sign: sum(even[sign]))
    if 2 * sum(even[best]) > len(even[best]):
        return best
    for sign in signs:
        first = rows[sign][0] if rows[sign] else []
        has_words = any(re.search(r"\S\s+\S", field) for field in first)
        if len(first) > 1 and (has_words or not any(f.startswith(LINKS) for f in first)):
            bad = even[sign].index(False)
            raise RecipeError(
                found=f"{even[sign].count(False)} of the first {len(even[sign])} rows have not"
                f" {len(first)} fields, as the first has: row {bad + 1} has {len(rows[sign][bad])}",
                where=where,
                do=f"put each text that holds {sign!r} in quotes, or write the table as TSV",
            )
    return ""


def _is_quoted(text: str, delimiter: str) -> bool:
    """Returns whether quotes enclose fields: read so, more rows have the usual number of fields.

    Cells that span lines are torn if quotes are read as letters. Where both ways give the same, a
    field that begins and ends with a quote was quoted; a stray quote, as in CC3M, was not.
    """
    first = text.find('"')
    if first < 0:
        return True
    start = text.rfind("\n", 0, first) + 1
    part = text[start : start + HEAD]
    ways = [_rows(part, delimiter, is_quoted)[:ROWS] for is_quoted in (False, True)]
    ((usual, _),) = Counter(len(row) for way in ways for row in way).most_common(1)
    plain, quoted = (sum(1 if len(row) == usual else -1 for row in way) for way in ways)
    if plain != quoted:
        return quoted > plain
    return any(len(field) > 1 and field[0] == field[-1] == '"' for row in ways[0] for field in row)


def _read_csv(
    text: str, options: pacsv.ParseOptions, names: list[str], has_header: bool, where: str
) -> pa.Table:
    """Parses rows, inferring each column's type."""
    data = text.encode()
    try:
        return pacsv.read_csv(
            io.BytesIO(data),
            pacsv.ReadOptions(
                use_threads=False,
                block_size=len(data) + 1,
                column_names=names,
                skip_rows_after_names=int(has_header),
            ),
            options,
            pacsv.ConvertOptions(timestamp_parsers=[], strings_can_be_null=True),
        )
    except pa.ArrowException as error:
        raise RecipeError(f"no table: {error}", where, "save it as CSV in UTF-8") from None


def _json_table(text: str) -> pa.Table:
    """Parses JSON lines; skips those that are no object."""
    rows = []
    for line in text.split("\n")[: 2 * ROWS]:  # JSON may hold other line ends, such as U+2028
        try:
            row = json.loads(line)
        except PARSE_ERRORS:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return records_sample(rows[:ROWS])


def records_sample(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Returns JSON objects as a table of keys, of objects in them by dotted paths.

    A key that no recipe can name is left out.
    """
    names = dict.fromkeys(name for row in rows for name in row if not NO_TEXT.search(name))
    return _plain(pa.table({name: _column([row.get(name) for row in rows]) for name in names}))


def _column(values: list[Any]) -> pa.Array:
    """Returns values as an array of their type, of texts and lists as lists; else as text.

    Half of a surrogate pair, as a cut emoji leaves it, becomes a question mark.
    """
    lists = [[value] if isinstance(value, str) else value for value in values]
    for alike in (values, lists):
        with suppress(pa.ArrowException, OverflowError, UnicodeEncodeError):
            return pa.array(alike)
    texts = [None if value is None else str(value).encode(errors="replace") for value in values]
    return pa.array(texts, pa.binary()).cast(pa.string())


def _count(storage: Storage, files: Sequence[FoundFile], lines_a_byte: float) -> tuple[int, bool]:
    """Returns the lines of all files, and whether they were counted."""
    size = sum(file.size for file in files)
    packed = any(file.name.lower().endswith(PACKED) for file in files)
    if size > COUNTED_BYTES:
        return round(size * lines_a_byte), False
    lines = 0
    for file in files:
        last = b"\n"
        with storage.fs.open_input_stream(storage.locate(file.name)) as stream:
            while block := bytes(stream.read(BLOCK_BYTES)):
                lines += block.count(b"\n")
                last = block[-1:]
        lines += last != b"\n"
    return lines, not packed or size < COUNTED_BYTES


def _plain(table: pa.Table) -> pa.Table:
    """Returns the table without dictionaries and views, and structs as their fields, by paths.

    A struct with `bytes` holds a picture, and stays.
    """
    columns: list[tuple[str, pa.ChunkedArray]] = []
    waiting = list(zip(table.column_names, table.columns, strict=True))
    while waiting:
        name, values = waiting.pop(0)
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if pa.types.is_string_view(values.type):  # which few functions of Arrow take
            values = values.cast(pa.large_string())
        if pa.types.is_struct(values.type) and values.type.get_field_index("bytes") < 0:
            inner = [(f"{name}.{f.name}", pc.struct_field(values, [f.name])) for f in values.type]
            waiting = [*(pair for pair in inner if pair[0] not in table.column_names), *waiting]
        else:
            columns.append((name, values))
    return pa.Table.from_arrays([values for _, values in columns], [name for name, _ in columns])


def _unreadable(storage: Storage, file: FoundFile, error: Exception) -> RecipeError:
    do = "put the whole file in its place, or leave it out"
    return RecipeError(f"a file that cannot be read: {error}", f"{storage}/{file.name}", do)
