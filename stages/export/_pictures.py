"""What the three exports of pictures and texts share; and an export, read as a pool is."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.places import places_name, read_places, unplaced
from clipmill.metadata.schema import (
    CAPTIONS,
    IMAGE,
    KEEP,
    POSITION,
    REPEATS,
    SHARD,
    TEXT,
    TEXTS,
    UID,
    Column,
)
from clipmill.metadata.shard import ShardWriter
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Context, Inputs, Mask, Shards, Task
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import DatasetStage, NonEmpty, OneUp, later
from clipmill.stages.export._columns import WHERE_THERE, check_columns
from clipmill.stages.export._groups import export_files
from clipmill.stages.export._leaving import NEEDED, NO_TEXT, REASONS, Dropped, Takes
from clipmill.stages.export._texts import (
    Captions,
    as_text_list,
    check_captions,
    check_types,
    first_texts,
    lists_in,
    texts_of,
    which_list,
)
from clipmill.stages.ops.tables.exports import summary_of

# Shapes: N rows of a file.


@dataclass(frozen=True)
class TakesTexts(Takes):
    """The same, where a text of a caption stage does for a row without one of the pool."""

    captions: Captions = False  # what a row's texts are taken from, beside `text`

    @property
    def reads(self) -> tuple[str, ...]:
        return *(self.captions if isinstance(self.captions, tuple) else ()), *super().reads

    @property
    def optional_reads(self) -> tuple[Column | tuple[Column, ...], ...]:
        lists = ((TEXTS, CAPTIONS),) if self.captions is True else ()
        return *lists, *super().optional_reads

    @property
    def tallied(self) -> tuple[str, ...]:
        lists = (TEXTS.name, CAPTIONS.name) if self.captions is True else ()
        return *lists, *super().tallied

    def _fine(self, batch: pa.Table) -> dict[str, list[NDArray[np.bool_]]]:
        fine = super()._fine(batch)
        if NO_TEXT in fine and lists_in(batch.schema, self.captions):
            fine[NO_TEXT] = [pc.list_value_length(texts_of(batch, self.captions)).to_numpy() > 0]
        return fine


@dataclass(frozen=True, kw_only=True)
class PictureExport(DatasetStage):
    """Rows with a picture and a text, shuffled into files."""

    rows_per_shard: OneUp = 10_000  # at most; a group of whole source shards seldom fills it
    columns: tuple[NonEmpty, ...] = ()  # stored besides, as `name` or `stage.name`
    dropped: Dropped | None = later(None)  # rows that a stage lost, in the place of kept ones
    # texts of a row: true takes `texts`, or the caption and one caption stage's; [a.captions, …]
    # the caption and these lists; false none, so that pictures leave alone
    captions: Captions = later(True)

    determinism = "exact"
    takes = (("rows", "data"),)
    gives = ("data",)
    reasons = REASONS
    always: ClassVar[tuple[Column, ...]]  # columns of every file
    where_there: ClassVar[tuple[Column, ...]] = WHERE_THERE

    def __post_init__(self) -> None:
        check_columns(self.columns, self.always)
        check_captions(self.captions)

    @property
    def taking(self) -> Takes:
        """Which rows leave."""
        needs = tuple(NEEDED) if self.captions else ("no_image",)
        return TakesTexts(needs, self.dropped, self.captions)

    @property
    def reads(self) -> tuple[Column | str, ...]:
        text = (TEXT,) if self.captions else ()
        return IMAGE, *text, *self.columns, *self.taking.reads

    @property
    def optional_reads(self) -> tuple[Column | tuple[Column, ...], ...]:
        return *self.where_there, *self.taking.optional_reads

    def check(self, types: Mapping[str, pa.DataType]) -> None:
        """Whether each list that `captions` names is one of captions."""
        check_types(self.captions, types)

    def hint(self, column: str, writers: tuple[str, ...] = ()) -> str:
        """Of two caption stages side by side, how to name both."""
        return which_list(column, writers)

    def texts(self, rows: pa.Table) -> pa.Array:
        """TEXT_LIST: every text of each row, as they leave."""
        return texts_of(rows, self.captions)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        takes = self.taking
        rows = rows_of(inputs, (*self.columns, *takes.reads), ctx)
        export_files(rows, takes, ctx, rows_per_file=self.rows_per_shard, **self.written(inputs))

    @abstractmethod
    def written(self, inputs: Inputs) -> dict[str, Any]:
        """How files are written: what `export_files` is told beside the rows."""


def about_set(license: str | None, url: str | None, inputs: Inputs) -> dict[str, Any]:
    """What is said of the set, as far as it is known."""
    said = {"license": license, "url": url, "made_by": inputs.steps}
    return {name: value for name, value in said.items() if value}


def write_parquet(
    leave: Callable[[pa.Table], pa.Table],
    stem: str,
    tables: Iterator[pa.Table],
    empty: pa.Table,
    task: Task,
    marked: Callable[[pa.Schema], pa.Schema] | None = None,
) -> tuple[dict[str, Any], pa.Schema]:
    """One file of the rows as they leave, and its schema, with its marks."""
    schema = leave(empty).schema
    schema = marked(schema) if marked else schema
    path = task.worker.scratch / "rows.parquet"
    writer = ShardWriter(path, schema, task.page_checksums)
    for table in tables:
        writer.add(leave(table))
    sha256, size_bytes = writer.close()
    task.put_file(f"{stem}.parquet", path, sha256)
    return {"file": f"{stem}.parquet", "bytes": size_bytes, "sha256": sha256}, schema


@dataclass(frozen=True)
class Exported:
    """Rows of an export, with their places in the pool; `keep` and `repeats` are the mask's.

    Implements `Shards`. `text` is the first of a row's `texts`.
    """

    data: str
    files: tuple[tuple[str, int], ...]  # name and rows
    columns: tuple[str, ...]
    mask: Mask | None

    def __len__(self) -> int:
        return len(self.files)

    def rows(self, index: int) -> int:
        return self.files[index][1]

    def batches(self, index: int, batch_rows: int = 1024) -> Iterator[pa.Table]:
        file, _ = self.files[index]
        outputs = Outputs(Storage(self.data))
        place_N2 = read_places(outputs, places_name(file))
        times_N = self.mask.times(file) if self.mask else None
        start = 0
        with outputs.parquet(file) as parquet:
            stored = {TEXTS.name if name == TEXT.name else name for name in self.columns}
            columns = [name for name in parquet.schema_arrow.names if name in {UID.name, *stored}]
            for batch in parquet.iter_batches(batch_rows, columns=columns):
                here = slice(start, start + len(batch))
                start += len(batch)
                table = pa.Table.from_batches([batch])
                for at, column in enumerate((SHARD, POSITION)):
                    table = table.append_column(column.name, pa.array(place_N2[here, at]))
                if TEXTS.name in columns:
                    texts = as_text_list(table[TEXTS.name])
                    table = table.set_column(columns.index(TEXTS.name), TEXTS.name, texts)
                    table = table.append_column(TEXT.name, first_texts(texts))
                yield table if times_N is None else taken(table, times_N[here])

    def table(self, index: int) -> pa.Table:
        return pa.concat_tables(self.batches(index))

    def select(self, names: Iterable[str]) -> "Exported":
        return replace(self, columns=tuple(names))


def taken(table: pa.Table, times_N: np.ndarray) -> pa.Table:
    """The rows with the mask's `keep` and `repeats`."""
    if REPEATS.name in table.column_names:
        table = table.drop_columns([REPEATS.name])
    table = table.append_column(REPEATS.name, pa.array(times_N, REPEATS.dtype))
    return table.append_column(KEEP.name, pa.array(times_N > 0))


def rows_of(inputs: Inputs, columns: Iterable[str], ctx: Context) -> Shards:
    """The rows to export, with these columns: of the pool, or of another export."""
    if not inputs.data:
        return inputs.rows
    dataset = summary_of(inputs.data, ctx.worker.stage)
    files = tuple((file["file"], file["rows"]) for file in dataset["files"])
    held = tuple(name for name, _ in dataset["columns"])
    missing = sorted(set(columns) - set(held)) if files else []
    if missing:
        raise StageError(
            found=f"no column '{missing[0]}' in the export",
            where=f"stage '{ctx.worker.stage}', key `columns`",
            do=f"add it to the export's `columns`; it has {', '.join(held)}",
        )
    outputs = Outputs(Storage(inputs.data))
    for file, _ in files:
        if places_name(file) not in outputs.names:
            raise StageError(*unplaced(outputs, file))
    return Exported(inputs.data, files, held, inputs.mask)
