"""The base of the exports of pictures and texts; reads an export as source rows."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.outputs import Outputs
from clipmill.metadata.places import places_name, read_places, unplaced
from clipmill.metadata.schema import (
    CAPTIONS,
    FACE_BBOXES,
    IMAGE,
    KEEP,
    POSITION,
    REPEATS,
    SHARD,
    TEXT,
    TEXT_LIST,
    TEXTS,
    UID,
    Column,
)
from clipmill.metadata.shard import ShardWriter
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Context, Inputs, Mask, Shards, Task
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import DatasetStage, NonEmpty, OneUp, later
from clipmill.stages.export._columns import IF_PRESENT, check_columns
from clipmill.stages.export._groups import export_files
from clipmill.stages.export._leaving import NEEDED, NO_TEXT, REASONS, Dropped, Takes
from clipmill.stages.export._texts import Captions, as_text_list, first_texts, lists_in, texts_of
from clipmill.stages.ops.images.blur import BAD_BOX, NO_BOXES, fault, soft
from clipmill.stages.ops.tables.exports import summary_of

# Shapes: N rows of a file.

FAULTS = (NO_BOXES, BAD_BOX)  # of rows whose picture is to be blurred


@dataclass(frozen=True)
class TakesPictures(Takes):
    """A choice of rows with pictures; it also takes rows whose only text is of a caption stage."""

    captions: Captions = False  # the lists of a row's texts, beside `text`
    blur: bool = False  # the boxes of each picture

    @property
    def reads(self) -> tuple[str, ...]:
        lists = self.captions if isinstance(self.captions, tuple) else ()
        return *lists, *((FACE_BBOXES.name,) if self.blur else ()), *super().reads

    @property
    def reasons(self) -> tuple[str, ...]:
        return *super().reasons, *(FAULTS if self.blur else ())

    @property
    def optional_reads(self) -> tuple[Column | tuple[Column, ...], ...]:
        lists = ((TEXTS, CAPTIONS),) if self.captions is True else ()
        return *lists, *super().optional_reads

    @property
    def tallied(self) -> tuple[str, ...]:
        lists = (TEXTS.name, CAPTIONS.name) if self.captions is True else ()
        return *lists, *super().tallied

    def _fine(self, batch: pa.Table) -> dict[str, NDArray[np.bool_]]:
        fine = super()._fine(batch)
        if NO_TEXT in fine and lists_in(batch.schema, self.captions):
            fine[NO_TEXT] = pc.list_value_length(texts_of(batch, self.captions)).to_numpy() > 0
        if self.blur:
            boxes = batch[FACE_BBOXES.name].to_pylist()
            faults = np.array([fault(some) for some in boxes], object)
            fine |= {reason: faults != reason for reason in FAULTS}
        return fine

    def shown(self, rows: pa.Table) -> pa.Table:
        """Returns the rows with their boxes blurred; a picture is null if undecodable."""
        if not self.blur:
            return rows
        pairs = zip(rows[IMAGE.name].to_pylist(), rows[FACE_BBOXES.name].to_pylist(), strict=True)
        image = pa.array([body and soft(body, boxes) for body, boxes in pairs], IMAGE.dtype)
        return rows.set_column(rows.column_names.index(IMAGE.name), IMAGE.name, image)


@dataclass(frozen=True, kw_only=True)
class PictureExport(DatasetStage):
    """Rows with a picture and a text, shuffled into files."""

    rows_per_shard: OneUp = 10_000  # cap; a group of whole source shards seldom fills it
    columns: tuple[NonEmpty, ...] = ()  # further columns, as `name` or `stage.name`
    dropped: Dropped | None = later(None)  # export rows that a stage dropped, not the kept ones
    # texts of a row: true takes `texts`, or the caption and one caption stage's; [a.captions, …]
    # takes the caption and these lists; false exports pictures without texts
    captions: Captions = later(True)
    # face_bboxes: blur these boxes of each picture, which leaves as WebP then, or as null if it
    # does not decode; `sha256` stays the pool's
    blur: Literal["face_bboxes"] | None = later(None)

    determinism = "exact"
    takes = (("rows", "data"),)
    gives = ("data",)
    reasons = (*REASONS, *FAULTS)
    always: ClassVar[tuple[Column | str, ...]]  # columns of every file
    if_present: ClassVar[tuple[Column, ...]] = IF_PRESENT  # columns that a pool may lack

    def __post_init__(self) -> None:
        check_columns(self.columns, self.always)
        if self.captions == ():
            raise ValueError("`captions` names no list; write names of lists, true or false")
        if len(set(self.lists)) < len(self.lists):
            raise ValueError(f"`captions` names a list twice: {', '.join(self.lists)}")

    @property
    def lists(self) -> tuple[str, ...]:
        """The lists that `captions` names."""
        return self.captions if isinstance(self.captions, tuple) else ()

    @property
    def taking(self) -> Takes:
        """The choice of rows."""
        needs = tuple(NEEDED) if self.captions else ("no_image",)
        return TakesPictures(needs, self.dropped, self.captions, self.blur is not None)

    @property
    def reads(self) -> tuple[Column | str, ...]:
        text = (TEXT,) if self.captions else ()
        return IMAGE, *text, *self.columns, *self.taking.reads

    @property
    def optional_reads(self) -> tuple[Column | tuple[Column, ...], ...]:
        return *self.if_present, *self.taking.optional_reads

    def check(self, types: Mapping[str, pa.DataType]) -> None:
        """Checks that each list in `captions` holds captions; raises RecipeError."""
        for name in self.lists:
            if name in types and types[name] != TEXT_LIST:
                raise RecipeError(
                    f"'{name}' holds {types[name]}, and no list of captions",
                    "key `captions`",
                    "name lists that caption stages write: [rewrites.captions]",
                )

    def hint(self, column: str, writers: tuple[str, ...] = ()) -> str:
        """Returns how to name two caption stages that both write captions."""
        if column != CAPTIONS.name or not writers:
            return ""
        names = ", ".join(f"{writer}.{column}" for writer in writers)
        return (
            f"name those that leave, in their order: captions: [{names}];"
            f" of `clipmill export`: --captions {names.replace(' ', '')}"
        )

    def texts(self, rows: pa.Table) -> pa.Array:
        """Returns a TEXT_LIST, the exported texts of each row."""
        return texts_of(rows, self.captions)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        takes = self.taking
        rows = rows_of(inputs, (*self.columns, *takes.reads), ctx)
        export_files(rows, takes, ctx, rows_per_file=self.rows_per_shard, **self.written(inputs))

    @abstractmethod
    def written(self, inputs: Inputs) -> dict[str, Any]:
        """Returns the arguments of `export_files` that say how files are written."""


def about_set(license: str | None, url: str | None, inputs: Inputs) -> dict[str, Any]:
    """Returns licence, page and stages of the set, without those that are unknown."""
    facts = {"license": license, "url": url, "made_by": inputs.steps}
    return {name: value for name, value in facts.items() if value}


def write_parquet(
    leave: Callable[[pa.Table], pa.Table],
    stem: str,
    tables: Iterator[pa.Table],
    empty: pa.Table,
    task: Task,
    marked: Callable[[pa.Schema], pa.Schema] | None = None,
) -> tuple[dict[str, Any], pa.Schema]:
    """Writes rows, converted by `leave`, with a schema `marked`; returns file and schema."""
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
    """Rows of an export, with their places in the pool, and `keep` and `repeats` of a mask.

    Implements `Shards`. `text` is the first of a row's `texts`.
    """

    data: str
    files: tuple[tuple[str, int], ...]  # name and rows
    columns: tuple[str, ...]
    mask: Mask | None
    always: tuple[str, ...] = ()  # columns that no selection leaves out

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
                for i, column in enumerate((SHARD, POSITION)):
                    table = table.append_column(column.name, pa.array(place_N2[here, i]))
                if TEXTS.name in columns:
                    texts = as_text_list(table[TEXTS.name])
                    table = table.set_column(columns.index(TEXTS.name), TEXTS.name, texts)
                    table = table.append_column(TEXT.name, first_texts(texts))
                yield table if times_N is None else masked(table, times_N[here])

    def table(self, index: int) -> pa.Table:
        return pa.concat_tables(self.batches(index))

    def select(self, names: Iterable[str]) -> "Exported":
        return replace(self, columns=(*names, *self.always))


def masked(table: pa.Table, times_N: np.ndarray) -> pa.Table:
    """Returns the rows with the mask's `keep` and `repeats`."""
    if REPEATS.name in table.column_names:
        table = table.drop_columns([REPEATS.name])
    table = table.append_column(REPEATS.name, pa.array(times_N, REPEATS.dtype))
    return table.append_column(KEEP.name, pa.array(times_N > 0))


def rows_of(inputs: Inputs, columns: Iterable[str], ctx: Context) -> Shards:
    """Returns the rows to export, of the pool or of another export that must have the columns."""
    if not inputs.data:
        return inputs.rows
    dataset = summary_of(inputs.data, ctx.worker.stage)
    files = tuple((file["file"], file["rows"]) for file in dataset["files"])
    stored = tuple(name for name, _ in dataset["columns"])
    missing = sorted(set(columns) - set(stored)) if files else []
    if missing:
        raise StageError(
            found=f"no column '{missing[0]}' in the export",
            where=f"stage '{ctx.worker.stage}', key `columns`",
            do=f"add it to the export's `columns`; it has {', '.join(stored)}",
        )
    outputs = Outputs(Storage(inputs.data))
    for file, _ in files:
        if places_name(file) not in outputs.names:
            raise StageError(*unplaced(outputs, file))
    # Such an export has rows without a picture, and only the pictures themselves tell which.
    lacks = "dropped" in dataset or NO_BOXES in dataset["counts"]
    return Exported(inputs.data, files, stored, inputs.mask, (IMAGE.name,) if lacks else ())
