"""Reads tables of forms that are neither lines of text nor Parquet, as Arrow tables, streamed."""

import codecs
import io
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote
from zipfile import ZipFile

import pyarrow as pa

from clipmill.metadata.globs import ARROW, DATABASES, FORMS, SHEETS
from clipmill.metadata.limits import limit
from clipmill.metadata.scratch import scratch_folder
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import ClipmillError, StageError
from clipmill.pipeline.extras import missing
from clipmill.stages.ops.tables.dotted import flat, paths_in, paths_of, roots_of, value_at
from clipmill.stages.ops.tables.pools import IMAGE_SUFFIXES, Values, in_batches, json_object

LOOKED_AT = 1000  # items from which the names of columns are taken
MAX_ITEM_BYTES = 16 << 20  # of JSON
JSON = re.compile(r"\.(jsonl?|ndjson)(\.gz|\.bz2|\.zst)?$")
CHUNK_BYTES = 1 << 20
FETCHED = 64  # rows of a database at a time, which may hold pictures
ANSWERERS = ("gpt", "assistant")  # in a conversation, who says what a picture shows
ARRAYS = ("images", "annotations", "data", "rows")  # of a JSON object, that hold rows


@dataclass(frozen=True)
class Form:
    """An opened table: its columns, and functions that stream and count its rows."""

    names: list[str]
    paths: list[str]  # dotted, of their fields too
    tables: Callable[[Sequence[str]], Iterator[pa.Table]]  # of the columns at these paths
    counted: Callable[[], int] | None = None

    def rows(self) -> int:
        """Returns the number of all rows."""
        if self.counted:
            return self.counted()
        return sum(map(len, self.tables(self.names[:1]))) if self.names else 0


def is_form(storage: Storage, path: str) -> bool:
    """Returns whether `opened` reads this file: by its name, of JSON by its start."""
    name = path.lower()
    return name.endswith(FORMS) or bool(JSON.search(name) and is_document(storage, path))


@contextmanager
def opened(storage: Storage, path: str, table: str | None = None) -> Iterator[Form]:
    """Opens a table, of several in a file the one with a name; StageError where it is unclear.

    pa.ArrowInvalid where it is broken, then or when its rows are read.
    """
    name = path.lower()
    if name.endswith(ARROW):
        yield arrow_form(storage, path)
    elif not name.endswith(FORMS):
        yield json_form(storage, path)
    else:
        with database(storage, path) as source:
            yield source.form(chosen(source.names(), table, f"{storage}/{path}"))


def names_in(storage: Storage, path: str) -> list[str]:
    """Returns the tables of a database, or the sheets of a workbook; none of another file."""
    if not path.lower().endswith((*DATABASES, *SHEETS)):
        return []
    with database(storage, path) as source:
        return source.names()


def chosen(names: Sequence[str], table: str | None, where: str) -> str:
    """Returns the table that is meant."""
    shown = ", ".join(map(repr, names)) or "none"
    if table is None and len(names) != 1:
        do = "name one of them: `table: NAME`, or --table NAME to `init`"
        raise StageError(f"{len(names)} tables: {shown}", where, do)
    return table or names[0]


def column(values: Values) -> pa.Array:
    """Returns values as one array, texts among lists as lists; as text if no type has them all."""
    if not isinstance(values, list):
        return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    with suppress(pa.ArrowException, OverflowError):
        return pa.array(values)
    with suppress(pa.ArrowException, OverflowError):
        return pa.array([[value] if isinstance(value, str) else value for value in values])
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def in_tables(rows: Iterable[Sequence[Any]], names: Sequence[str]) -> Iterator[pa.Table]:
    """Yields rows as tables, cut after 32 MB."""
    for batch in in_batches(rows, row_bytes):
        columns = zip(*batch, strict=True)
        yield pa.table([column(list(values)) for values in columns], names=list(names))


def row_bytes(row: Sequence[Any]) -> int:
    """Returns about the bytes of a row, which may hold pictures."""
    return sum(len(value) for value in row if isinstance(value, str | bytes))


@contextmanager
def as_arrows_errors() -> Iterator[None]:
    """Turns a parser's error into pa.ArrowInvalid."""
    try:
        yield
    except (ClipmillError, OSError, pa.ArrowException):
        raise
    except Exception as error:  # sqlite3.Error, duckdb.Error, BadZipFile, KeyError of a sheet
        raise pa.ArrowInvalid(str(error) or repr(error)) from error


# JSON: an array of objects, or an object with an array of them, as of COCO


def is_document(storage: Storage, path: str) -> bool:
    """Returns whether a file is one JSON value, not an object a line."""
    with storage.fs.open_input_stream(storage.locate(path)) as file:  # unpacks
        stream = io.BufferedReader(file)
        lines = (line.removeprefix(codecs.BOM_UTF8).strip() for line in lines_of(stream))
        filled = filter(None, lines)
        first, second = next(filled, b""), next(filled, b"")
    if not first.startswith(b"{"):
        return first.startswith(b"[")
    row = json_object(first)
    if row is None:
        return json_object(second) is None and ".json." in f"{path.lower()}."
    has_rows = any(isinstance(row.get(name), list) for name in ARRAYS)
    return not second and (has_rows or next(iter(row), "").lower().endswith(IMAGE_SUFFIXES))


def lines_of(stream: IO[bytes]) -> Iterator[bytes]:
    """Yields the first lines, cut where they are too long to be rows."""
    for _ in range(LOOKED_AT):
        yield stream.readline(MAX_ITEM_BYTES)


def json_form(storage: Storage, path: str) -> Form:
    """Opens a JSON document. Rows of an array are streamed, an object is held in memory."""

    def items() -> Iterator[Mapping[str, Any]]:
        with storage.fs.open_input_stream(storage.locate(path)) as stream, as_arrows_errors():
            reader = JsonReader(stream)
            if reader.skip() == "[":
                yield from map(as_row, reader.items())
                return
            held.extend([] if held else rows_of(reader.members()))
            yield from held

    def tables(wanted: Sequence[str]) -> Iterator[pa.Table]:
        yield from in_tables(([value_at(row, path) for path in wanted] for row in items()), wanted)

    held: list[Mapping[str, Any]] = []  # of an object
    names: dict[str, None] = {}
    paths: dict[str, None] = {}
    for row in islice(items(), LOOKED_AT):
        names |= dict.fromkeys(row)
        paths |= dict.fromkeys(paths_in(row))
    return Form([*names], [*paths], tables)


def as_row(item: Any) -> Mapping[str, Any]:
    """Returns an object; an empty one for another value, which keeps its place.

    LLaVA's `conversations` become `caption`, the answers alone.
    """
    if not isinstance(item, dict):
        return {}
    turns = item.get("conversations")
    if "caption" in item or not isinstance(turns, list):
        return item
    rest = {name: value for name, value in item.items() if name != "conversations"}
    answers = [turn for turn in map(as_row, turns) if turn.get("from") in ANSWERERS]
    return rest | {"caption": [str(turn.get("value")) for turn in answers]}


def rows_of(members: Iterator[tuple[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yields the rows of an object: COCO's images with their captions, else the first array's.

    Of an object of texts alone: each name, with its captions.
    """
    arrays: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    texts: dict[str, list[str]] = defaultdict(list)
    for name, item in members:
        if isinstance(item, dict):
            arrays[name].append(item)
        elif isinstance(item, str):
            texts[name].append(item)
    captions: dict[str, list[str]] = defaultdict(list)
    for note in arrays.get("annotations", ()):
        if isinstance(note.get("caption"), str):
            captions[str(note.get("image_id"))].append(note["caption"])
    if captions and "images" in arrays:
        for image in arrays["images"]:
            yield {**image, "caption": captions.get(str(image.get("id")))}
    elif "images" in arrays and "annotations" in arrays:
        raise ValueError("annotations without a caption")
    elif arrays:
        yield from arrays[next((name for name in ARRAYS if name in arrays), next(iter(arrays)))]
    elif texts:
        yield from ({"file_name": name, "caption": texts[name]} for name in texts)
    else:
        raise ValueError("neither an array of objects nor captions")


class JsonReader:
    """A JSON text that is read value by value; ValueError where it is none, or ends early."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.text, self.place, self.is_whole = stream, "", 0, False
        self.decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self.parse = json.JSONDecoder().raw_decode

    def skip(self) -> str:
        """Returns the next letter that is no white space, without taking it; "" at the end."""
        while True:
            while self.place < len(self.text):
                if not (letter := self.text[self.place]).isspace():
                    return letter
                self.place += 1
            if not self.more():
                return ""

    def more(self) -> bool:
        """Reads on; returns False at the end. Twice as much each time, for one long value."""
        rest = self.text[self.place :]
        block = self.stream.read(max(CHUNK_BYTES, len(rest)))
        self.text, self.place = rest + self.decode(block, final=not block), 0
        self.is_whole = not block
        return bool(block)

    def value(self) -> Any:
        """Takes the next value."""
        self.skip()
        while True:
            try:
                value, end = self.parse(self.text, self.place)
                if end < len(self.text) or self.is_whole:  # a number may go on
                    self.place = end
                    return value
            except json.JSONDecodeError:
                if self.is_whole or len(self.text) - self.place > MAX_ITEM_BYTES:
                    raise
            self.more()

    def items(self) -> Iterator[Any]:
        """Takes the values of an array."""
        self.place += 1
        while (letter := self.skip()) != "]":
            if not letter:
                raise ValueError("JSON that ends early")
            if letter == ",":
                self.place += 1
            else:
                yield self.value()
        self.place += 1

    def members(self) -> Iterator[tuple[str, Any]]:
        """Takes an object; yields its names with texts, and with each value of an array."""
        self.place += 1
        while (letter := self.skip()) != "}":
            if letter == ",":
                self.place += 1
                continue
            name = self.value()
            if self.skip() != ":":
                raise ValueError("JSON that ends early")
            self.place += 1
            if self.skip() == "[":
                yield from ((str(name), item) for item in self.items())
            elif isinstance(value := self.value(), str):
                yield str(name), value


# Arrow IPC, as a file (Feather) or a stream (`save_to_disk`)


def arrow_form(storage: Storage, path: str) -> Form:
    """Opens an Arrow file or stream. A batch of it is held in memory."""

    def batches(wanted: Sequence[str] | None) -> Iterator[Any]:
        with storage.open(path) as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
            if wanted is None:
                yield reader.schema
                return
            places = [reader.schema.get_field_index(name) for name in wanted]
            options = pa.ipc.IpcReadOptions(included_fields=places, use_threads=False)
            file.seek(0)
            if is_file:
                reader = pa.ipc.open_file(file, options=options)
                yield from map(reader.get_batch, range(reader.num_record_batches))
            else:
                yield from pa.ipc.open_stream(file, options=options)

    def tables(wanted: Sequence[str]) -> Iterator[pa.Table]:
        for batch in batches(roots_of(wanted, schema.names)):
            batch.validate(full=True)  # offsets that lead out of it would end the process
            table = flat(wanted, pa.Table.from_batches([batch]))
            yield pa.table({path: plain(column(table[path])) for path in wanted})

    schema = next(batches(None))
    return Form(schema.names, paths_of(schema), tables)


def plain(array: pa.Array) -> pa.Array:
    """Returns an array without dictionary and views, which few functions take."""
    if pa.types.is_dictionary(array.type):
        return plain(array.dictionary).take(array.indices)
    views = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    return array.cast(views.get(array.type, array.type))


# Databases and workbooks, which have several tables


@contextmanager
def database(storage: Storage, path: str) -> Iterator["Sql | Workbook"]:
    """Opens a database or a workbook, for reading only; one of another machine is copied first."""
    where = f"{storage}/{path}"
    with ExitStack() as stack, as_arrows_errors():
        place = Path(storage.locate(path))
        if not storage.is_local:
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=scratch_folder()))
            place = Path(folder, Path(path).name)
            storage.download(path, place)
        with place.open("rb") as file:
            head = file.read(16)
        if path.lower().endswith(SHEETS):
            source: Sql | Workbook = Workbook(place, where)
        elif head.startswith(b"SQLite format 3"):
            source = Sql(sqlite(place), SQLITE_TABLES, "NOT INDEXED")
        elif head[8:12] == b"DUCK":
            source = Sql(duckdb(place, where), DUCKDB_TABLES)
        else:
            raise pa.ArrowInvalid("no database of SQLite or DuckDB")
        stack.callback(source.close)
        yield source


SQLITE_TABLES = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
DUCKDB_TABLES = (
    "SELECT table_name FROM information_schema.tables WHERE table_type = 'BASE TABLE'"
    " AND table_schema = 'main'"
)


def sqlite(place: Path) -> Any:
    """Opens SQLite read-only. What another process has not written back yet is read, too."""
    import sqlite3

    log = place.with_name(f"{place.name}-wal")
    is_still = not log.exists() or not log.stat().st_size
    uri = f"file:{quote(str(place))}?mode=ro" + ("&immutable=1" if is_still else "")
    connection = sqlite3.connect(uri, uri=True)
    connection.execute("PRAGMA trusted_schema = OFF")  # a view calls no function that acts
    connection.text_factory = lambda text: text.decode(errors="replace")
    return connection


def duckdb(place: Path, where: str) -> Any:
    """Opens DuckDB read-only; its views read no other file, and nothing is installed."""
    try:
        import duckdb
    except ImportError as error:
        raise missing("duckdb", where) from error
    options = {"enable_external_access": "false", "autoload_known_extensions": "false"}
    return duckdb.connect(str(place), read_only=True, config={**options, "threads": "1"})


class Sql:
    """A database by Python's interface for them."""

    def __init__(self, connection: Any, listing: str, as_stored: str = "") -> None:
        self.connection, self.listing, self.as_stored = connection, listing, as_stored

    def close(self) -> None:
        self.connection.close()

    def names(self) -> list[str]:
        return sorted(row[0] for row in self.rows(self.listing))

    def form(self, table: str) -> Form:
        """Opens a table, or a view. Rows come in the order in which they are stored."""

        def tables(wanted: Sequence[str]) -> Iterator[pa.Table]:
            roots = roots_of(wanted, names)
            query = f"SELECT {', '.join(map(quoted, roots))} FROM {quoted(table)} {self.as_stored}"
            records = (dict(zip(roots, row, strict=True)) for row in self.rows(query))
            yield from in_tables(
                ([value_at(record, path) for path in wanted] for record in records), wanted
            )

        with as_arrows_errors():
            cursor = self.connection.cursor()
            cursor.execute(f"SELECT * FROM {quoted(table)} LIMIT 0")
            columns = cursor.description
        names = [name for name, *_ in columns]
        paths = [path for name, kind, *_ in columns for path in inside(name, kind)]
        count = f"SELECT count(*) FROM {quoted(table)}"
        return Form(names, paths, tables, lambda: int(next(self.rows(count))[0]))

    def rows(self, query: str) -> Iterator[Sequence[Any]]:
        with as_arrows_errors():
            cursor = self.connection.cursor()
            cursor.execute(query)
            while rows := cursor.fetchmany(FETCHED):
                yield from rows


def inside(path: str, kind: Any) -> list[str]:
    """Returns a column's path, and those of fields below, which DuckDB's structs have."""
    fields = kind.children if getattr(kind, "id", "") == "struct" else []
    return [path, *(below for name, kind in fields for below in inside(f"{path}.{name}", kind))]


def quoted(name: str) -> str:
    """Returns a name in SQL."""
    return '"' + name.replace('"', '""') + '"'


class Workbook:
    """A workbook of Excel: the first row of a sheet names its columns."""

    def __init__(self, place: Path, where: str) -> None:
        try:
            import openpyxl
        except ImportError as error:
            raise missing("openpyxl", where) from error
        with ZipFile(place) as packed:
            size, most = sum(info.file_size for info in packed.infolist()), limit("MAX_BATCH_BYTES")
        ratio = limit("MAX_ZIP_RATIO")
        if size > max(most, ratio * place.stat().st_size):
            found = f"its sheets take {size:,} bytes, {ratio:,} times its own"
            raise pa.ArrowInvalid(f"{found}: a bomb, or raise CLIPMILL_MAX_ZIP_RATIO")
        self.book = openpyxl.load_workbook(place, read_only=True, data_only=True, keep_links=False)

    def close(self) -> None:
        self.book.close()

    def names(self) -> list[str]:
        return [sheet.title for sheet in self.book.worksheets if next(self.rows(sheet.title), None)]

    def form(self, table: str) -> Form:
        """Opens a sheet; empty rows are passed over."""
        header = next(self.rows(table), ())
        names = [str(cell) for cell in header if cell is not None]
        places = {str(cell): place for place, cell in enumerate(header) if cell is not None}
        if len(places) < len(names):
            raise pa.ArrowInvalid(f"columns of one name among {', '.join(names)}")

        def tables(wanted: Sequence[str]) -> Iterator[pa.Table]:
            rows = islice(self.rows(table), 1, None)
            cells = [places[name] for name in wanted]
            yield from in_tables(([row[cell] for cell in cells] for row in rows), wanted)

        return Form(names, names, tables)

    def rows(self, sheet: str) -> Iterator[Sequence[Any]]:
        with as_arrows_errors():
            width = 0
            for row in self.book[sheet].iter_rows(values_only=True):
                if any(cell is not None for cell in row):
                    width = width or len(row)
                    yield (*row, *[None] * (width - len(row)))
