"""Reads a pool from tables of any form, whose pictures are links, bytes, Base64 or paths."""

import base64
import errno
import posixpath
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import eq
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.fs import FileType

from clipmill.metadata.globs import FORMS, files_of, open_pool
from clipmill.metadata.schema import IMAGE, IMAGE_EMBEDDING, REASON, SHA256, UID
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.stage import NonEmpty, OneUp, later, location
from clipmill.stages.ingest._columns import (
    PARQUET_SUFFIXES,
    SourceColumn,
    create_shards,
    head_of,
    refuse_misfits,
    require,
)
from clipmill.stages.ingest._text_rows import (
    MAX_LINE_BYTES,
    PLAIN_SUFFIXES,
    TEXT_SUFFIXES,
    Dialect,
    Rows,
    scan_text,
    text_rows,
    unparsed_nowhere,
)
from clipmill.stages.ingest.parquet import IMAGE_ROWS, Parquet, as_stored, holds_images
from clipmill.stages.ops.tables.dotted import flat, paths_of
from clipmill.stages.ops.tables.forms import column, is_form, names_in, opened
from clipmill.stages.ops.tables.parquet_rows import (
    Positioned,
    Source,
    counted,
    parquet_rows,
    scan_parquet,
)
from clipmill.stages.ops.tables.pools import (
    BATCH_ROWS,
    IMAGE_SUFFIXES,
    any_of,
    failing_its_shard,
    in_batches,
    leads_out,
    list_files,
    python,
    read_if_allowed,
    sizes_of,
)

OF_FILES = ("outside", "unreadable", "too_large")  # reasons of pictures that are files
# A path has a dot, is shorter, or ends in a SHA-256. Possessive: a blank has one place alone.
BASE64 = re.compile(
    r"(?!\S*\b[0-9a-f]{64}\s*$)\s*+(?:data:[\w/+.-]*;base64,)?([A-Za-z0-9+/\s]{64,}+)=*+\s*+"
)
NOT_NAMES = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EINVAL)


class ByEnd:
    """Finds pictures by the ends of paths: the name without suffix, zeros and #0, then folders."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = set(names)
        self._by_end = sorted((_ends(name), name) for name in self.names)

    def find(self, path: str) -> str | None:
        """Returns the picture that shares most with a path; None if there is none, or two."""
        ends = _ends(path)
        place = bisect_left(self._by_end, (ends,))
        # Those that share most stand next to where the path would: two on either side tell a tie.
        near = self._by_end[max(0, place - 2) : place + 2]
        ranked = sorted(([*map(eq, ends, way), False].index(False), name) for way, name in near)
        is_tied = len(ranked) > 1 and ranked[-2][0] == ranked[-1][0]
        return ranked[-1][1] if ranked and ranked[-1][0] and not is_tied else None


def _ends(path: str) -> list[str]:
    *folders, base = re.sub(r"#\d+$", "", path.strip()).replace("\\", "/").lower().split("/")
    stem = base[: base.rindex(".")] if base.endswith(IMAGE_SUFFIXES) else base
    return [stem.lstrip("0") if stem.isdecimal() else stem, *folders[::-1]]


@lru_cache(maxsize=1)
def by_end(uri: str, below: str, digest: str) -> ByEnd:
    """Returns the pictures of a folder below another; held for the next shard of a table."""
    names = [file.name.removeprefix(below) for file in files_of(uri) if file.name.startswith(below)]
    return ByEnd(name for name in names if name.lower().endswith(IMAGE_SUFFIXES))


@dataclass(frozen=True, kw_only=True)
class Table(Parquet):
    """Link, image, caption and embeddings of every row of any table; null, with a reason, if unfit.

    Read are CSV, TSV, JSON (lines, arrays, COCO's captions), Parquet, Arrow and Feather, SQLite,
    DuckDB and Excel; the last three may hold several tables, of which `table` names one. Image:
    bytes, Base64, or the path of a file, also as a file:// link. A path starts at `pictures`, or
    without it at the table's own folder, and never leads out of there (`outside`): not by `..`, nor
    as a whole path, nor to names that begin with a dot, nor by a symbolic link, unless
    `follow_links`. A file that is gone or may not be read is `unreadable`, one above
    `max_image_bytes` `too_large`. url: that of `url_col`, else the path. uid: that of `uid_col`, or
    the hash of caption and link, else path, SHA-256 or vector. The rest: `ingest.parquet`.

    Source: the CSV that open_clip trains from; img2dataset's column names.
    Error: a table is known by name, size and time of change, and its pictures by their paths: one
        that changes is not noticed. A file that is neither text nor Parquet is read by one worker;
        of COCO's captions some 2 bytes a byte are held in memory, and so is a batch of Arrow.
    Example: {path: pairs.csv, image_col: filepath, caption_col: title}
    """

    version = 4
    determinism = "exact"
    takes = ()
    reasons = ("unparsable", *OF_FILES, *Parquet.reasons)  # type: ignore[assignment]  # more

    image_col: NonEmpty | None = None  # column of the images: bytes, Base64, or paths of files
    pictures: NonEmpty | None = location(None)  # folder where paths start; null: the table's own
    # a path that leads nowhere is the picture there whose path ends alike, but for the suffix
    search: bool = later(False)
    follow_links: bool = later(False)  # also out of the folder: for folders of your own
    max_image_bytes: OneUp = 100 << 20  # a larger file is `too_large`
    table: NonEmpty | None = None  # of a database or a workbook with several: table, view or sheet
    quoted: bool = True  # false for raw TSV, whose captions hold stray quotes
    columns: tuple[NonEmpty, ...] = ()  # names, for text without a header: [filepath, text]
    delimiter: NonEmpty | None = None  # default: comma in .csv, tab in .tsv and .txt
    encoding: NonEmpty | None = None  # default: UTF-8, or UTF-16 if a file begins so
    max_line_bytes: OneUp = MAX_LINE_BYTES  # a longer line of JSON is `unparsable`

    def __post_init__(self) -> None:
        super().__post_init__()
        Dialect.set_by(self).check()

    def listed(self, stage: str) -> list[dict[str, Any]]:
        """Returns its files; plain text only if `path` names it."""
        named = self.path.partition("?")[0].lower().endswith(PLAIN_SUFFIXES)
        suffixes = PLAIN_SUFFIXES if named else (*PARQUET_SUFFIXES, *TEXT_SUFFIXES, *FORMS)
        return list_files(self.path, suffixes, stage)

    def files(self) -> dict[str, int]:
        return sizes_of(self.listed("pool"))

    def counts(self) -> Iterator[tuple[int, int]]:
        files = self.listed("pool")
        if all(is_parquet(file["path"]) for file in files):  # else only reading tells
            storage, _ = open_pool(self.path)
            yield from (counted(storage, file, self.shard_rows) for file in files)

    @classmethod
    def sample(
        cls, storage: Storage, path: str, rows: int, table: str | None
    ) -> tuple[pa.Table, int] | None:
        """Returns a file's first rows, and how many it has; None of text and Parquet.

        pa.ArrowException and OSError where it is broken.
        """
        if not is_form(storage, path):
            return None
        with opened(storage, path, table) as form:
            empty = pa.table({name: pa.array([], pa.string()) for name in form.names})
            first = next(form.tables(form.names), empty)
            return first.slice(0, rows), form.rows()

    names_in, by_end, python = staticmethod(names_in), ByEnd, staticmethod(python)  # for init

    def head(self, rows: int) -> pa.Table:
        first, tried = partial(scan, self, is_cut=False), partial(read, self, is_tried=True)
        return head_of(self.listed("pool"), first, tried, rows)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        scanned = ctx.map(partial(scan, self), self.listed(ctx.worker.stage))
        create_shards(ctx, partial(read, self), scanned, together=not self.image_col)


def scan(
    stage: Table, file: Mapping[str, Any], task: Task | None, is_cut: bool = True
) -> dict[str, Any]:
    """Returns the file's sources, in groups that are read as one."""
    storage, _ = open_pool(stage.path)
    where = f"{storage}/{file['path']}"
    source, step = {"path": file["path"], "digest": file["digest"]}, stage.shard_rows
    if is_form(storage, file["path"]):
        source["is_form"] = True
        try:
            with opened(storage, file["path"], stage.table) as form:
                paths, rows = form.paths, form.rows() if is_cut else 1 << 62
        except (pa.ArrowException, OSError):
            return {"groups": [[{**source, "start": 0, "stop": None}]]}  # reading fails its shard
        require(stage.names, paths, where)
        starts = range(0, max(rows, 1), step if is_cut else rows)
        bounds = [(start, min(start + starts.step, rows)) for start in starts]
        return {"groups": [[{**source, "start": start, "stop": stop} for start, stop in bounds]]}
    if not is_parquet(file["path"]):
        dialect = Dialect.set_by(stage)
        sources = scan_text(storage, file, stage.names, step if is_cut else None, dialect)
        return {"groups": [[source] for source in sources]}
    groups, schema = scan_parquet(storage, file, step)
    if schema is not None:
        require(stage.names, paths_of(schema), where)
    return {"groups": groups}


def read(
    stage: Table, group: Sequence[Source], task: Task | None, is_tried: bool = False
) -> Iterator[Iterator[pa.Table]]:
    """Yields each source's rows in the stage's columns; one empty table if there are none."""
    storage, _ = open_pool(stage.path)
    path = group[0]["path"]
    where = f"{storage}/{path}"
    names = list(dict.fromkeys(stage.names.values()))
    pictures = Pictures(stage, storage, group[0])

    def stored(batches: Iterator[Rows]) -> Iterator[pa.Table]:
        yield pa.schema([(c.name, c.dtype) for c in (UID, *stage.writes, REASON)]).empty_table()
        with failing_its_shard(where, UnicodeError):
            for rows, unparsed in batches:
                table = pa.table({name: column(rows[name]) for name in rows})
                for part, bodies, paths, more in pictures.loaded(table):  # in order, in parts
                    first, unparsed = unparsed[: len(part)], unparsed[len(part) :]
                    if is_tried and more:
                        pictures.refuse(paths, more, where)
                    known = {"unparsable": first.is_valid(), **more}
                    place = partial(without_link, pc.coalesce(first, paths))
                    yield as_stored(stage, part, place, where if is_tried else None, known, bodies)

    if is_parquet(path):
        with failing_its_shard(where):
            batch_rows = IMAGE_ROWS if stage.image_col else BATCH_ROWS
            each = parquet_rows(storage, group, names, batch_rows, convert=partial(flat, names))
            for tables in each:
                yield stored(map(unparsed_nowhere, tables))
    elif "is_form" in group[0]:
        with failing_its_shard(where), opened(storage, path, stage.table) as form:
            rows = Positioned(form.tables(names), 0, BATCH_ROWS)
            for source in group:
                bounds = source["start"], source["stop"] or 1 << 62
                yield stored(map(unparsed_nowhere, rows.between(*bounds)))
    else:
        for source in group:
            yield stored(text_rows(storage, source, names, Dialect.set_by(stage)))


def without_link(names: pa.Array, values: Mapping[str, pa.Array]) -> pa.Array:
    """Returns what tells rows without a link apart: a line or path, the SHA-256, or the vector."""
    if SHA256.name in values:
        return pc.coalesce(names, values[SHA256.name])
    if IMAGE_EMBEDDING.name not in values:
        return names
    texts = [vector and str(vector) for vector in values[IMAGE_EMBEDDING.name].to_pylist()]
    return pc.coalesce(names, pa.array(texts, pa.string()))


class Pictures:
    """The pictures of a table's rows: what a value holds, or the file that it names."""

    def __init__(self, stage: Table, storage: Storage, source: Source) -> None:
        self.column, self.most = stage.image_col, stage.max_image_bytes
        self.follow, table = stage.follow_links, source["path"]
        self.storage = Storage(stage.pictures) if stage.pictures else storage
        self.below = "" if stage.pictures else table[: table.rfind("/") + 1]
        self.ends = by_end(self.storage.uri, self.below, source["digest"]) if stage.search else None
        self.is_text = not is_parquet(table) and "is_form" not in source  # whose values are bytes

    def loaded(
        self, rows: pa.Table
    ) -> Iterator[tuple[pa.Table, pa.Array | None, pa.Array, dict[str, pa.Array]]]:
        """Yields rows, bytes and name of each picture, paths of files and reasons, by 32 MB."""
        values = rows[self.column] if self.column else None
        if values is None or (not self.is_text and holds_bytes(values)):
            yield rows, None, pa.nulls(len(rows), pa.string()), {}
            return
        start = 0
        for batch in in_batches(
            map(self.picture, python(values)), lambda picture: len(picture[0] or b"")
        ):
            bodies, names, paths, reasons = zip(*batch, strict=True)
            fields = pa.array(bodies, IMAGE.dtype), pa.array(names, pa.string())
            pictures = pa.StructArray.from_arrays(fields, ["bytes", "path"])
            masks = {code: pa.array([reason == code for reason in reasons]) for code in OF_FILES}
            yield rows.slice(start, len(batch)), pictures, pa.array(paths, pa.string()), masks
            start += len(batch)

    def picture(self, value: Any) -> tuple[bytes | None, str | None, str | None, str | None]:
        """Returns bytes, name, the path of a file, and a reason if there are no bytes."""
        found = value.as_py() if isinstance(value, pa.Scalar) else value
        if isinstance(found, dict):
            if isinstance(found.get("bytes"), bytes) and found["bytes"]:
                return found["bytes"], found.get("path"), None, None
            found = found.get("path")
        if isinstance(found, list) and len(found) == 1:
            [found] = found
        text = str(found) if isinstance(found, int) else found or ""
        data = text if isinstance(text, bytes) else str(text).encode(errors="replace")
        text = data.decode(errors="replace")
        if encoded := BASE64.fullmatch(text):
            with suppress(ValueError):
                return base64.b64decode(encoded[1] + "=="), None, None, None
        if encoded or not text.strip():
            return None, None, None, None
        name = (self.ends and self.ends.find(text)) or self.name_of(text)
        below = self.below
        if name is None or (not self.follow and leads_out(self.storage, below + name, below)):
            return None, text, text, "outside"
        place = self.storage.locate(self.below + name)
        try:
            body = read_if_allowed(self.storage, self.below + name, self.most + 1)
        except (OSError, ValueError) as error:
            is_name = isinstance(error, OSError) and error.errno not in NOT_NAMES
            if is_name and self.storage.fs.get_file_info(place).type != FileType.Directory:
                raise
            body = None
        reason = "unreadable" if body is None else "too_large" if len(body) > self.most else None
        return None if reason else body, name, name, reason

    def name_of(self, value: str) -> str | None:
        """Returns a path relative to the folder; None if it leads out of it or is hidden."""
        path = value.strip()
        if path.lower().startswith("file://"):
            parts = urlsplit(path)
            path = unquote(parts.path) if parts.netloc in ("", "localhost") else "//"
        if "/" not in path:
            path = path.replace("\\", "/")  # as Windows writes it
        for folder in (self.storage.uri, self.storage.path):
            path = path.removeprefix(f"{folder.rstrip('/')}/{self.below}")
        is_within = "://" not in path and not path.startswith("/")
        path = posixpath.normpath(path)
        return path if is_within and not any(part[:1] == "." for part in path.split("/")) else None

    def refuse(self, paths: pa.Array, masks: Mapping[str, pa.Array], where: str) -> None:
        """Raises StageError if most paths lead nowhere."""
        source = SourceColumn("image_col", str(self.column), IMAGE)
        folder = f"{self.storage}/{self.below}".rstrip("/")
        missing = any_of([masks["outside"], masks["unreadable"]], len(paths))
        do = "name the folder where they start: `pictures: FOLDER`, or --pictures FOLDER to `init`"
        if any("://" in (path or "") for path in paths.to_pylist()):
            do = "links belong in `url_col`"
        refuse_misfits(source, paths, missing, where, f"no files below {folder}", do)


def holds_bytes(values: pa.ChunkedArray) -> bool:
    """Returns whether a column has the pictures' bytes, in all of its structs if these may not."""
    if not holds_images(values.type):
        return False
    is_struct = pa.types.is_struct(values.type) and values.type.get_field_index("path") >= 0
    return not is_struct or not pc.struct_field(values, "bytes").null_count


def is_parquet(path: str) -> bool:
    """Returns whether this is a Parquet file, by its name."""
    return path.lower().endswith(PARQUET_SUFFIXES)
