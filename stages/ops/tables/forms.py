"""Reads tables of forms that are neither lines of text nor Parquet, as Arrow tables, streamed."""

import codecs
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

import pyarrow as pa

from clipmill.metadata.limits import UNPARSED
from clipmill.metadata.storage import Storage
from clipmill.stages.ops.tables.pools import in_batches, json_object

LOOKED_AT = 1000  # items from which the names of columns are taken
MAX_ITEM_BYTES = 16 << 20  # of JSON
CHUNK_BYTES = 1 << 20
ARRAYS = ("images", "annotations", "data", "rows")  # of a JSON object, that hold rows


@dataclass(frozen=True)
class Form:
    """An opened table: names of its columns, and a function that streams its rows."""

    names: list[str]
    tables: Callable[[], Iterator[pa.Table]]

    def rows(self) -> int:
        """Returns the number of all rows."""
        return sum(map(len, self.tables()))


def is_form(storage: Storage, path: str) -> bool:
    """Returns whether `opened` reads this file: by its name, of JSON by its start."""
    return ".json" in path.lower()[-9:] and is_document(storage, path)


@contextmanager
def opened(storage: Storage, path: str) -> Iterator[Form]:
    """Opens a table; pa.ArrowInvalid where it is broken, then or when its rows are read."""
    yield json_form(storage, path)


@contextmanager
def as_arrows_errors() -> Iterator[None]:
    """Turns a parser's error into pa.ArrowInvalid."""
    try:
        yield
    except UNPARSED as error:
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
        return json_object(second) is None
    return not second and any(isinstance(row.get(name), list) for name in ARRAYS)


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
            else:
                yield from rows_of(reader.members())

    def tables() -> Iterator[pa.Table]:
        for batch in in_batches(items(), row_bytes):
            yield pa.table({name: column([row.get(name) for row in batch]) for name in names})

    names = list(dict.fromkeys(name for row in islice(items(), LOOKED_AT) for name in row))
    return Form(names, tables)


def as_row(item: Any) -> Mapping[str, Any]:
    """Returns an object; an empty one for another value, which keeps its place."""
    return item if isinstance(item, dict) else {}


def row_bytes(row: Mapping[str, Any]) -> int:
    """Returns about the bytes of a row's texts, which may hold pictures."""
    return sum(len(value) for value in row.values() if isinstance(value, str))


def rows_of(members: Iterator[tuple[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yields the rows of an object: COCO's images with their captions, else the first array's."""
    arrays: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for name, item in members:
        if isinstance(item, dict):
            arrays[name].append(item)
    if not arrays:
        raise ValueError("no array of objects")
    if "images" not in arrays or "annotations" not in arrays:
        name = next((name for name in ARRAYS if name in arrays), next(iter(arrays)))
        yield from arrays[name]
        return
    captions: dict[Any, list[str]] = defaultdict(list)
    for note in arrays["annotations"]:
        if isinstance(note.get("caption"), str):
            captions[str(note.get("image_id"))].append(note["caption"])
    if not captions:
        raise ValueError("annotations without a caption")
    for image in arrays["images"]:
        yield {**image, "caption": captions.get(str(image.get("id")))}


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
        """Takes an object; yields the name of each array in it, with each of its values."""
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
            else:
                self.value()


def column(values: list[Any]) -> pa.Array:
    """Returns values as an array; as text if their types differ."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        texts = [None if value is None else str(value) for value in values]
        return pa.array(texts, pa.string())
