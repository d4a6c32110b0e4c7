"""A pool that is a list of URLs and captions: Parquet, CSV, TSV or JSON lines."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from metadata.schema import ORIGINAL_HEIGHT, ORIGINAL_WIDTH, REASON, TEXT, UID, URL, Column
from pipeline.dataset import Context, Inputs, Task
from pipeline.errors import RecipeError
from pipeline.stage import DatasetStage, location
from stages.ingest._text_rows import TEXT_SUFFIXES, Rows, scan_text, text_rows
from stages.ops.tables import (
    any_of,
    check_shard_rows,
    failing_its_shard,
    first_reason,
    fit,
    list_files,
    open_pool,
    parquet_rows,
    require,
    scan_parquet,
    sizes_of,
    uid_column,
    uid_values,
)

PARQUET = ".parquet"
MEND = "name the columns of the file in url_col, caption_col, uid_col, width_col, height_col, extra"


@dataclass(frozen=True, kw_only=True)
class UrlList(DatasetStage):
    """URL and caption of every row, as found; null, with a reason, where there is none.

    The uid is the 32 hex digits of `uid_col`; the hash of url and text without that column, or
    where it holds anything else (`bad_uid`). A row that no parser reads keeps its place with
    nulls (`unparsable`), as does a value that is not of its column's type (`bad_value`). A null
    caption is no fault. A file without rows is a shard without rows.

    Source: img2dataset's column names. Its CSV reader fails a file with one bad row; ours does not.
    Error: a file is known by name, size and time of change. A compressed file is one shard, for
        it cannot be entered midway. A quote that is never closed joins the rows up to the next
        quote, as in every CSV reader; a CSV row above 16 MB fails its shard.
    Example: {path: list.csv, caption_col: caption}
    """

    version = 1
    determinism = "exact"
    takes = ()
    reasons = ("unparsable", "bad_uid", "no_url", "bad_value")

    path: str = location()  # a file, a folder or a glob, here or s3://…
    url_col: str = "url"  # column of the link
    caption_col: str | None = "text"  # column of the caption; null where there is none
    # column of an id of 32 hex digits; null: the hash of link and caption
    uid_col: str | None = None
    width_col: str | None = None  # column of the image's width, in pixels
    height_col: str | None = None  # column of its height
    # more columns, each with its Arrow type: {license: string}
    extra: dict[str, str] = field(default_factory=dict)
    quoted: bool = True  # false for raw TSV, such as CC3M's, whose captions hold stray quotes
    shard_rows: int = 10_000  # rows of one shard, the unit of work and of resuming

    def __post_init__(self) -> None:
        check_shard_rows(self.shard_rows)
        taken = {UID.name, REASON.name, *(column.name for column, _ in self._own)}
        for name, alias in self.extra.items():
            if name in taken:
                raise RecipeError(f"'{name}' twice", "key `extra`", "leave it out: it is read")
            try:
                pa.type_for_alias(alias)
            except ValueError as error:
                do = "write an Arrow type: string, int64, float32, bool, ..."
                raise RecipeError(f"type '{alias}'", f"key `extra.{name}`", do) from error

    @property
    def _own(self) -> list[tuple[Column, str]]:
        """Columns written, and their names in the file."""
        named = (
            (URL, self.url_col),
            (TEXT, self.caption_col),
            (ORIGINAL_WIDTH, self.width_col),
            (ORIGINAL_HEIGHT, self.height_col),
        )
        return [(column, name) for column, name in named if name is not None]

    @property
    def columns(self) -> list[tuple[Column, str]]:
        """The columns that are stored, each with its name in the file; `extra` ones last."""
        extra = (
            (Column(name, pa.type_for_alias(alias), "as found", "Passed through from the pool."))
            for name, alias in self.extra.items()
        )
        return [*self._own, *((column, column.name) for column in extra)]

    @property
    def writes(self) -> tuple[Column, ...]:
        return tuple(column for column, _ in self.columns)

    @property
    def names(self) -> list[str]:
        """The columns to read from each file."""
        names = [*(name for _, name in self.columns), *([self.uid_col] if self.uid_col else [])]
        return list(dict.fromkeys(names))

    def files(self) -> dict[str, int]:
        return sizes_of(list_files(self.path, (PARQUET, *TEXT_SUFFIXES), "pool"))

    def run(self, inputs: Inputs, ctx: Context) -> None:
        files = list_files(self.path, (PARQUET, *TEXT_SUFFIXES), ctx.worker.stage)
        scanned = ctx.map(partial(scan, self), files)
        ctx.create_shards(partial(read, self), [s for file in scanned for s in file["sources"]])


def scan(stage: UrlList, file: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """The file's sources: ranges of rows (Parquet) or of bytes (text)."""
    storage, _ = open_pool(stage.path)
    if file["path"].lower().endswith(PARQUET):
        sources, schema = scan_parquet(storage, file, stage.shard_rows)
        if schema is not None:
            require(stage.names, schema.names, f"{storage}/{file['path']}", MEND)
    else:
        sources = scan_text(storage, file, stage.names, stage.shard_rows, stage.quoted, MEND)
    return {"sources": sources}


def read(stage: UrlList, source: Mapping[str, Any], task: Task) -> Iterator[pa.Table]:
    """The source's rows in the stage's columns; one empty table where there are none."""
    storage, _ = open_pool(stage.path)
    none: Rows = ({name: [] for name in stage.names}, pa.nulls(0, pa.string()))
    with failing_its_shard(f"{storage}/{source['path']}"):
        batches: Iterator[Rows]
        if source["path"].lower().endswith(PARQUET):
            batches = map(unparsed_nowhere, parquet_rows(storage, source, stage.names))
        else:
            batches = text_rows(storage, source, stage.names, stage.quoted)
        for rows, unparsed in chain([none], batches):
            yield fitted(stage, rows, unparsed)


def unparsed_nowhere(table: pa.Table) -> Rows:
    """Rows of a Parquet file, all marked as parsed: its parser reads all of them or none."""
    columns = dict(zip(table.column_names, table.columns, strict=True))
    return columns, pa.nulls(len(table), pa.string())


def fitted(stage: UrlList, rows: Mapping[str, Any], unparsed: pa.Array) -> pa.Table:
    """Rows of a file in the columns that the stage writes."""
    fits = {column.name: fit(rows[name], column.dtype) for column, name in stage.columns}
    values = {name: column for name, (column, _) in fits.items()}
    url = values[URL.name]
    text = values.get(TEXT.name, pa.nulls(len(unparsed), pa.string()))
    uid = uid_values(rows[stage.uid_col]) if stage.uid_col else None
    # Without url and text, the row's own bytes tell it from the next that no parser reads.
    known = uid_column(uid, url, pc.coalesce(unparsed, text))
    masks = {
        "unparsable": unparsed.is_valid(),
        "bad_uid": uid.is_null()
        if uid is not None
        else pa.array([False] * len(unparsed), pa.bool_()),
        "no_url": pc.fill_null(pc.equal(url, ""), True),
        "bad_value": any_of([misfit for _, misfit in fits.values()], len(unparsed)),
    }
    return pa.table({UID.name: known, **values, REASON.name: first_reason(masks)})
