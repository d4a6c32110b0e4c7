"""Reads a pool from a list of URLs and captions: CSV, TSV, plain text, JSON lines or Parquet."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from math import ceil
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.globs import open_pool
from clipmill.metadata.schema import (
    CAPTIONS,
    ORIGINAL_HEIGHT,
    ORIGINAL_WIDTH,
    REASON,
    TEXT,
    UID,
    URL,
    Column,
)
from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import DatasetStage, NonEmpty, OneUp, later, location
from clipmill.stages.ingest._captions import captions_of, without_mark
from clipmill.stages.ingest._columns import (
    SourceColumn,
    check_extra,
    create_shards,
    fitted,
    head_of,
    is_most,
    refuse_uids,
    require,
    shortened,
    source_columns,
)
from clipmill.stages.ingest._text_rows import (
    DELIMITER,
    MAX_LINE_BYTES,
    PLAIN_SUFFIXES,
    TEXT_SUFFIXES,
    Dialect,
    Rows,
    kind_of,
    scan_text,
    text_rows,
    unparsed_nowhere,
)
from clipmill.stages.ops.tables.dotted import flat, paths_of
from clipmill.stages.ops.tables.parquet_rows import Source, counted, parquet_rows, scan_parquet
from clipmill.stages.ops.tables.pools import (
    any_of,
    failing_its_shard,
    first_reason,
    list_files,
    sizes_of,
    uid_column,
    uid_values,
)

PARQUET = ".parquet"
SETTINGS = {
    "url_col": URL,
    "caption_col": TEXT,
    "width_col": ORIGINAL_WIDTH,
    "height_col": ORIGINAL_HEIGHT,
}
COUNTED_BYTES = 16 << 20  # most bytes of text whose rows are counted for a plan


@dataclass(frozen=True, kw_only=True)
class UrlList(DatasetStage):
    """URL and caption of every row, as found; null, with a reason, if there is none.

    `uid_col` gives the uid, 32 hex digits. Without that column the uid is the hash of url and text,
    and so is that of a malformed one (`bad_uid`). A row that cannot be parsed is null
    (`unparsable`); so is a value of another type (`bad_value`), such as a list of captions without
    `all_captions`. A null caption is no fault. A file without rows is a shard without rows.

    A column of JSON or Parquet is a name or a dotted path, `image.url`. A file without a header
    takes `columns: [text, url]`. A plain list of links (.txt, one a line, which `path` names) takes
    `caption_col: null`. A spreadsheet's CSV takes `delimiter: ";"` and `encoding: cp1252`; UTF-16
    is known by the file's first bytes.

    Source: img2dataset's column names. Its CSV reader fails a file with one bad row; ours does not.
    Error: a file is known by name, size and time of change. A compressed file is one shard, for
        it cannot be entered midway, and so is one in UTF-16. A quote that is never closed joins the
        rows up to the next quote, as in every CSV reader; a CSV row above 16 MB fails its shard.
    Example: {path: list.csv, caption_col: caption}
    """

    version = 1
    determinism = "exact"
    takes = ()
    reasons = ("unparsable", "bad_uid", "no_url", "bad_value")

    path: NonEmpty = location()  # a file, a folder or a glob, here or s3://…
    url_col: NonEmpty = "url"  # column of the link
    caption_col: NonEmpty | None = "text"  # column of the caption; null if there is none
    all_captions: bool = later(False)  # stores all captions of a list, in `captions`
    strip_bom: bool = later(False)  # leaves out a byte-order mark before a caption
    # column of an id of 32 hex digits; null: the hash of link and caption
    uid_col: NonEmpty | None = None
    width_col: NonEmpty | None = None  # column of the image's width, in pixels
    height_col: NonEmpty | None = None  # column of its height
    # more columns, each with its Arrow type: {license: string}
    extra: dict[NonEmpty, NonEmpty] = field(default_factory=dict)
    quoted: bool = True  # false for raw TSV, such as CC3M's, whose captions hold stray quotes
    columns: tuple[NonEmpty, ...] = later(())  # names, for files without a header: [text, url]
    delimiter: NonEmpty | None = later(None)  # default: comma in .csv, tab in .tsv and .txt
    encoding: NonEmpty | None = later(None)  # default: UTF-8, or UTF-16 if a file begins so
    max_line_bytes: OneUp = later(MAX_LINE_BYTES)  # a longer line of JSON is `unparsable`
    shard_rows: OneUp = 10_000  # rows of one shard, the unit of work and of resuming

    def __post_init__(self) -> None:
        Dialect.set_by(self).check()
        own = [source.column.name for source in source_columns(self, SETTINGS, {})]
        check_extra(self.extra, [*own, *([CAPTIONS.name] if self.reads_lists else [])])

    @property
    def fitted_columns(self) -> list[SourceColumn]:
        """Returns the stored columns, each with its name in the files; `extra` ones last."""
        return source_columns(self, SETTINGS, self.extra)

    @property
    def reads_lists(self) -> bool:
        """Returns whether it reads lists of captions."""
        return self.all_captions and self.caption_col is not None

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Returns suffixes of the files that it reads; of plain text only if `path` names it."""
        named = self.path.partition("?")[0].lower().endswith(PLAIN_SUFFIXES)
        return PLAIN_SUFFIXES if named else (PARQUET, *TEXT_SUFFIXES)

    @property
    def writes(self) -> tuple[Column, ...]:
        more = (CAPTIONS,) if self.reads_lists else ()
        return *(source.column for source in self.fitted_columns), *more

    @property
    def names(self) -> dict[str, str]:
        """Returns every column of the files that is read, by its setting."""
        names = {source.key: source.name for source in self.fitted_columns}
        return names | ({"uid_col": self.uid_col} if self.uid_col else {})

    def files(self) -> dict[str, int]:
        return sizes_of(list_files(self.path, self.suffixes, "pool"))

    def counts(self) -> Iterator[tuple[int, int]]:
        storage, _ = open_pool(self.path)
        files = list_files(self.path, self.suffixes, "pool")
        texts = [file for file in files if not file["path"].lower().endswith(PARQUET)]
        if sum(file["size"] for file in texts) > COUNTED_BYTES:
            return  # only reading tells
        rows_of: dict[str, int] = {}
        for file in texts:
            rows = scan_text(storage, file, self.names, 1, Dialect.set_by(self))
            if rows[0]["stop"] is None:
                return  # compressed, or UTF-16: only reading tells
            rows_of[file["path"]] = sum(row["stop"] > row["start"] for row in rows)
        for file in files:
            if (count := rows_of.get(file["path"])) is None:
                yield counted(storage, file, self.shard_rows)
            else:
                yield count, max(1, ceil(count / self.shard_rows))

    def head(self, rows: int) -> pa.Table:
        files = list_files(self.path, self.suffixes, "pool")
        return head_of(files, partial(scan, self, is_cut=False), partial(read, self), rows)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        files = list_files(self.path, self.suffixes, ctx.worker.stage)
        scanned = ctx.map(partial(scan, self), files)
        create_shards(ctx, partial(read, self), scanned)


def scan(
    stage: UrlList, file: Mapping[str, Any], task: Task | None, is_cut: bool = True
) -> dict[str, Any]:
    """Returns the file's sources, in groups read as one: ranges of rows (Parquet) or of bytes."""
    storage, _ = open_pool(stage.path)
    if file["path"].lower().endswith(PARQUET):
        groups, schema = scan_parquet(storage, file, stage.shard_rows)
        if schema is not None:
            require(stage.names, paths_of(schema), f"{storage}/{file['path']}")
        return {"groups": groups}
    shard_rows = stage.shard_rows if is_cut else None
    sources = scan_text(storage, file, stage.names, shard_rows, Dialect.set_by(stage))
    return {"groups": [[source] for source in sources]}


def read(
    stage: UrlList, group: Sequence[Source], task: Task | None, is_tried: bool = False
) -> Iterator[Iterator[pa.Table]]:
    """Yields each source's rows in the stage's columns, after an empty table."""
    storage, _ = open_pool(stage.path)
    where = f"{storage}/{group[0]['path']}"
    names = list(dict.fromkeys(stage.names.values()))
    no_rows: Rows = ({name: [] for name in names}, pa.nulls(0, pa.string()))

    def stored(batches: Iterator[Rows]) -> Iterator[pa.Table]:
        with failing_its_shard(where, UnicodeError):
            for rows, unparsed in chain([no_rows], batches):
                yield as_stored(stage, rows, unparsed, where if is_tried else None)

    if group[0]["path"].lower().endswith(PARQUET):
        with failing_its_shard(where):
            for tables in parquet_rows(storage, group, names, convert=partial(flat, names)):
                yield stored(map(unparsed_nowhere, tables))
    else:
        for source in group:
            yield stored(text_rows(storage, source, names, Dialect.set_by(stage)))


def as_stored(
    stage: UrlList, rows: Mapping[str, Any], unparsed: pa.Array, tried: str | None
) -> pa.Table:
    """Returns rows of a file in the stage's columns; `tried` names it if most may misfit."""
    if tried:
        refuse_unparsed(stage, unparsed, tried)
    plain = [c for c in stage.fitted_columns if c.key != "caption_col" or not stage.reads_lists]
    values, misfits = fitted(plain, rows, tried)
    if stage.reads_lists:
        name = str(stage.caption_col)
        texts, misfits[TEXT.name] = captions_of(rows[name], all_captions=True)
        values |= texts
    elif stage.strip_bom and stage.caption_col:
        values[TEXT.name] = without_mark(values[TEXT.name])
    url = values[URL.name]
    text = values.get(TEXT.name, pa.nulls(len(unparsed), pa.string()))
    uid = uid_values(rows[stage.uid_col]) if stage.uid_col else None
    bad_uid = any_of([] if uid is None else [uid.is_null()], len(unparsed))
    if tried and stage.uid_col:
        refuse_uids(stage.uid_col, rows[stage.uid_col], bad_uid, tried)
    # Without url and text, a row's own bytes tell it from others that no parser reads.
    known = uid_column(uid, url, pc.coalesce(unparsed, text))
    masks = {
        "unparsable": unparsed.is_valid(),
        "bad_uid": bad_uid,
        "no_url": pc.fill_null(pc.equal(url, ""), True),
        "bad_value": any_of(list(misfits.values()), len(unparsed)),
    }
    stored = {column.name: values[column.name] for column in stage.writes}
    return pa.table({UID.name: known, **stored, REASON.name: first_reason(masks)})


def refuse_unparsed(stage: UrlList, unparsed: pa.Array, where: str) -> None:
    """Raises StageError if most rows cannot be parsed: the file has another format than assumed."""
    bad = unparsed.drop_null()
    if is_most(len(bad), len(unparsed)):
        do = "write one JSON object a line"
        if kind_of(where) in DELIMITER:
            do = "a row has as many fields as the first, or as `columns` has: see `delimiter` and"
            do += " `quoted`, which is false for files with stray quotes"
        example = shortened(bad[0].as_py())
        found = f"{len(bad)} of the first {len(unparsed)} rows cannot be read: {example}"
        raise StageError(found, where, do)
