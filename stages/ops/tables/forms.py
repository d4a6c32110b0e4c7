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
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zipfile import ZipFile

import pyarrow as pa
from msgspec import Raw
from msgspec.json import decode as parse

from clipmill.metadata.globs import ARROW, DATABASES, FORMS, SHEETS
from clipmill.metadata.limits import limit
from clipmill.metadata.scratch import scratch_folder
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import ClipmillError, StageError
from clipmill.pipeline.extras import missing
from clipmill.stages.ops.tables.dotted import flat, paths_in, paths_of, roots_of, value_at
from clipmill.stages.ops.tables.pools import (
    IMAGE_SUFFIXES,
    MIXED,
    Values,
    in_batches,
    json_object,
    one_array,
)

LOOKED_AT = 1000  # items from which the names of columns are taken
MAX_ITEM_BYTES = 16 << 20  # of JSON
NAN = re.compile(rb"[:\[,]\s*(?:NaN|-?Infinity)\s*[,\]}]")  # as Python writes them, or in a text
# What stands before a NaN, texts among it, and the NaN: a match for each, not for each text.
BEFORE = re.compile(rb'((?:[^"NI-]++|"(?:[^"\\]++|\\.)*+"?+|-(?!I))*+)(NaN|-?Infinity)?', re.S)
WHOLE = (".json", ".jsonl", ".ndjson")  # not packed
JSON = re.compile(r"\.(jsonl?|ndjson)(\.gz|\.bz2|\.zst)?$")
FETCHED = 64  # rows of a database at a time, which may hold pictures
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
        return self.counted() if self.counted else sum(map(len, self.tables(self.names[:1])))


def is_form(storage: Storage, path: str) -> bool:
    """Returns whether `opened` reads this file, by its name; JSON by how it begins."""
    name = path.lower()
    return name.endswith(FORMS) or bool(JSON.search(name) and is_document(storage, path))


@contextmanager
def opened(storage: Storage, path: str, table: str | None = None) -> Iterator[Form]:
    """Opens a file's table, the named one of several; StageError if it is unclear which is meant.

    pa.ArrowInvalid if it is broken, then or when its rows are read.
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
    """Returns values as one array, texts among lists as lists; MIXED if no type has them all."""
    if not isinstance(values, list):
        return one_array(values)
    lists = [[value] if isinstance(value, str) else value for value in values]
    for alike in (values, lists):
        with suppress(pa.ArrowException, OverflowError, UnicodeError):
            return one_array(alike)

    def text(value: Any) -> str:
        return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)

    texts = [None if value is None else json.dumps(value, default=text) for value in values]
    return pa.ExtensionArray.from_storage(MIXED, pa.array(texts, pa.string()))


def in_tables(rows: Iterable[Sequence[Any]], names: Sequence[str]) -> Iterator[pa.Table]:
    """Yields rows as tables, cut after 32 MB."""
    for batch in in_batches(
        rows, lambda row: sum(len(value) for value in row if isinstance(value, str | bytes))
    ):
        columns = zip(*batch, strict=True)
        yield pa.table([column(list(values)) for values in columns], names=list(names))


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
        lines = (stream.readline(MAX_ITEM_BYTES) for _ in range(LOOKED_AT))
        filled = filter(None, (line.removeprefix(codecs.BOM_UTF8).strip() for line in lines))
        first, second = next(filled, b""), next(filled, b"")
    if not first.startswith(b"{"):
        return first.startswith(b"[")
    row = json_object(first)
    if row is None:
        return json_object(second) is None and ".json." in f"{path.lower()}."
    has_rows = any(isinstance(row.get(name), list) for name in ARRAYS)
    inner = [set(value) if isinstance(value, dict) else set() for value in row.values()]
    is_table = len(inner) > 1 and (bool(set.intersection(*inner)) or is_columns(row))
    is_named = next(iter(row), "").lower().endswith(IMAGE_SUFFIXES)
    return not second and (has_rows or is_table or is_named)


def json_form(storage: Storage, path: str) -> Form:
    """Opens a JSON document, mapped into memory if it lies here. Its rows are parsed one by one."""

    def tables(wanted: Sequence[str]) -> Iterator[pa.Table]:
        with as_arrows_errors():
            values = ([value_at(row, path) for path in wanted] for row in rows())
            yield from in_tables(values, wanted)

    place, is_here = storage.locate(path), storage.is_local and path.lower().endswith(WHOLE)
    with pa.memory_map(place) if is_here else storage.fs.open_input_stream(place) as file:
        data = memoryview(file.read_buffer() if is_here else file.read())
    if NAN.search(data):
        data = memoryview(BEFORE.sub(lambda m: m[1] + b"null" if m[2] else m[0], bytes(data)))
    with as_arrows_errors():
        rows = rows_of(data[3:] if bytes(data[:3]) == codecs.BOM_UTF8 else data)
        first = [*islice(rows(), LOOKED_AT)]
    paths = dict.fromkeys(path for row in first for path in paths_in(row))
    return Form([*dict.fromkeys(chain.from_iterable(first))], [*paths], tables)


def rows_of(data: memoryview) -> Callable[[], Iterator[Mapping[str, Any]]]:
    """Returns a function that yields a document's rows: an array's items, or COCO's images.

    An object without `images` and `annotations` gives its first array of objects, else `named`.
    """
    if bytes(data[:4096]).lstrip().startswith(b"["):
        return partial(map, as_row, parse(data, type=list[Raw]))
    members = parse(data, type=dict[str, Raw])
    lists = {n: parse(raw, type=list[Raw]) for n, raw in members.items() if bytes(raw)[:1] == b"["}
    arrays = {n: items for n, items in lists.items() if items and bytes(items[0])[:1] == b"{"}
    captions: dict[str, list[str]] = defaultdict(list)
    for note in map(as_row, arrays.get("annotations", ())):
        if isinstance(text := note.get("caption"), str):
            captions[str(note.get("image_id"))].append(text)
    if "images" in arrays and "annotations" in arrays:
        if not captions:
            raise ValueError("annotations without a caption")
        images = partial(map, as_row, arrays["images"])
        return lambda: ({**row, "caption": captions.get(str(row.get("id")))} for row in images())
    if not arrays:
        return partial(iter, named(parse(data, type=dict[str, Any])))
    rows = next((name for name in ARRAYS if name in arrays), next(iter(arrays)))
    return partial(map, as_row, arrays[rows])


def as_row(item: Raw) -> Mapping[str, Any]:
    """Returns an object; an empty one for another value, which keeps its place."""
    return row if isinstance(row := parse(item), dict) else {}


def named(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns each name with its captions or fields, if null without; of columns, their rows."""
    if is_columns(values):
        return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    texts = {name: [value] if isinstance(value, str) else value for name, value in values.items()}
    texts = {name: value for name, value in texts.items() if isinstance(value, list)}
    objects = {name: value for name, value in values.items() if isinstance(value, dict)}
    if any(texts.values()):
        names = [name for name in values if name not in objects]
        return [{"file_name": name, "caption": texts.get(name)} for name in names]
    if len(objects) < 2:
        raise ValueError("neither an array of objects nor captions")
    keys = [*next(iter(objects.values()))]
    if all(map(str.isdecimal, keys)):  # of the rows, in columns, as pandas writes them
        return [{name: objects[name].get(key) for name in objects} for key in keys]
    names = [name for name in values if name in objects or values[name] is None]
    return [{"file_name": name, **objects.get(name, {})} for name in names]


def is_columns(arrays: Mapping[str, Any]) -> bool:
    """Returns whether arrays are columns: as long as each other, and one of links."""
    lists = [value for value in arrays.values() if isinstance(value, list) and value]
    is_even = len(lists) == len(arrays) > len({*map(len, lists)}) == 1
    return is_even and any(str(value[0]).startswith("http") for value in lists)


# Arrow IPC, as a file (Feather) or a stream (`save_to_disk`)


def arrow_form(storage: Storage, path: str) -> Form:
    """Opens an Arrow file or stream. A batch of it is held in memory."""

    def batches(wanted: Sequence[str] | None) -> Iterator[Any]:
        with storage.open(path) as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            read = pa.ipc.open_file if is_file else pa.ipc.open_stream
            stored = read(file).schema
            if wanted is None:
                yield stored
                return
            places = [stored.get_field_index(name) for name in wanted]
            file.seek(0)
            options = pa.ipc.IpcReadOptions(included_fields=places, use_threads=False)
            reader = read(file, options=options)
            numbers = range(reader.num_record_batches if is_file else 0)
            yield from map(reader.get_batch, numbers) if is_file else reader

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


SQLITE_TABLES = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT GLOB 'sqlite_*'"
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
    connection.text_factory = lambda text: text.decode(errors="surrogateescape")
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
            head = f"SELECT * FROM {quoted(table)} LIMIT 0"
            columns = self.connection.cursor().execute(head).description
        names = [name for name, *_ in columns]
        paths = [path for name, kind, *_ in columns for path in inside(name, kind)]
        count = f"SELECT count(*) FROM {quoted(table)}"
        return Form(names, paths, tables, lambda: int(next(self.rows(count))[0]))

    def rows(self, query: str) -> Iterator[Sequence[Any]]:
        with as_arrows_errors():
            cursor = self.connection.cursor().execute(query)
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
