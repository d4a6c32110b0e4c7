"""The training set as a Hugging Face dataset: a folder that `load_dataset` opens."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from clipmill.metadata.schema import (
    CAPTION,
    IMAGE,
    REASON,
    REPEATS,
    SAMPLE_INDEX,
    TEXT,
    TEXTS,
    UID,
    Column,
)
from clipmill.metadata.shard import ShardWriter
from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.stage import DatasetStage, NonEmpty, OneUp, later
from clipmill.stages.export._columns import (
    WHERE_THERE,
    as_text,
    check_columns,
    check_page,
    with_hex_ids,
)
from clipmill.stages.export._exported import rows_of
from clipmill.stages.export._features import PICTURE, has_feature, with_features
from clipmill.stages.export._groups import export_files
from clipmill.stages.export._leaving import REASONS, Dropped, Takes, takes_of
from clipmill.stages.export._texts import (
    Captions,
    captions_of,
    check_captions,
    check_types,
    lists_in,
    texts_of,
    which_list,
)

FIXED = (UID, IMAGE, CAPTION, TEXTS, SAMPLE_INDEX, REASON)


@dataclass(frozen=True, kw_only=True)
class HuggingFace(DatasetStage):
    """Files data/train-00000-of-00012.parquet …, with a README.md that says what the features are.

    A row has `image` (an `Image`: the encoded bytes as they were stored), `caption`, `uid` as 32
    hex digits, `sample_index`, what the pool knows of url, sizes, sha256, repeats and loss_weight,
    and the chosen columns; where caption stages wrote some, `texts`: a list of {text, source,
    model, prompt_id, label}, of which `caption` is the first. Takes the rows that `export.parquet`
    takes, in the same order. README.md is a dataset card: features, splits and licence in its head;
    below, the stages that made the set and counts.

    What `datasets` has no type for (a map, an interval) is JSON as text.

    Source: the Parquet layout of the Hugging Face Hub, as `datasets` writes it.
    Error: `num_bytes` in the card is the size of the files, not of the decoded table.
    Example: {after: [ingest.webdataset]}
    """

    rows_per_shard: OneUp = 10_000  # at most; a group of whole source shards seldom fills it
    columns: tuple[NonEmpty, ...] = ()  # stored besides, as `name` or `stage.name`
    license: NonEmpty | None = None  # of the set: a URL, or a name of SPDX's
    url: NonEmpty | None = None  # of the page that presents the set
    dropped: Dropped | None = later(None)  # rows that a stage lost, in the place of kept ones
    # texts of a row: true takes `texts`, or the caption and one caption stage's; [a.captions, …]
    # the caption and these lists; false none, so that pictures leave alone
    captions: Captions = later(True)

    version = 3
    determinism = "exact"
    formats = ("huggingface",)
    takes = (("rows", "data"),)
    gives = ("data",)
    reasons = REASONS

    def __post_init__(self) -> None:
        check_columns(self.columns, FIXED)
        check_captions(self.captions)
        check_page(self.url)

    @property
    def taking(self) -> Takes:
        """Which rows leave."""
        return takes_of(self.captions, self.dropped)

    @property
    def reads(self) -> tuple[Column | str, ...]:
        text = (TEXT,) if self.captions else ()
        return IMAGE, *text, *self.columns, *self.taking.reads

    @property
    def optional_reads(self) -> tuple[Column | tuple[Column, ...], ...]:
        return *WHERE_THERE, *self.taking.optional_reads

    def check(self, types: Mapping[str, pa.DataType]) -> None:
        """Whether each list that `captions` names is one of captions."""
        check_types(self.captions, types)

    def hint(self, column: str, writers: tuple[str, ...] = ()) -> str:
        """Of two caption stages side by side, how to name both."""
        return which_list(column, writers)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        takes = self.taking
        rows = rows_of(inputs, (*self.columns, *takes.reads), ctx)
        leave = partial(
            exported, captions=self.captions, dropped=self.dropped, columns=self.columns
        )
        write = partial(write_file, leave)
        said = {"license": self.license, "url": self.url, "made_by": inputs.told}
        about = {name: value for name, value in said.items() if value}
        export_files(
            rows, takes, ctx, "huggingface", self.rows_per_shard, write, about=about, stem=stem
        )


def stem(files: int, number: int) -> str:
    """The Hub's names: the number among how many."""
    return f"data/train-{number:05d}-of-{files:05d}"


def write_file(
    leave: Callable[[pa.Table], pa.Table],
    stem: str,
    tables: Iterator[pa.Table],
    empty: pa.Table,
    task: Task,
) -> tuple[dict[str, Any], pa.Schema]:
    """One shard, and its schema."""
    schema = with_features(leave(empty).schema)
    path = task.worker.scratch / "rows.parquet"
    writer = ShardWriter(path, schema, task.page_checksums)
    for table in tables:
        writer.add(leave(table))
    sha256, size_bytes = writer.close()
    task.put_file(f"{stem}.parquet", path, sha256)
    return {"file": f"{stem}.parquet", "bytes": size_bytes, "sha256": sha256}, schema


def exported(
    table: pa.Table, captions: Captions, dropped: Dropped | None, columns: tuple[str, ...]
) -> pa.Table:
    """The rows as they leave: pictures as structs, every id as text."""
    known = [column.name for column in (*WHERE_THERE, REPEATS) if column.name in table.column_names]
    texts = texts_of(table, captions)
    out = {
        IMAGE.name: pictures(table[IMAGE.name]),
        CAPTION.name: captions_of(table, texts, captions),
    }
    if lists_in(table.schema, captions):
        out[TEXTS.name] = texts
    out |= {name: table[name] for name in (UID.name, SAMPLE_INDEX.name)}
    if dropped:
        out |= dropped.told(table)
    rows = with_hex_ids(pa.table(out | {name: table[name] for name in (*known, *columns)}))
    for i, field in enumerate(rows.schema):
        if not has_feature(field.type):
            rows = rows.set_column(i, field.name, as_text(rows[i]))
    return rows


def pictures(image: pa.ChunkedArray) -> pa.Array:
    """{bytes, path: null} of each picture; null without one."""
    encoded = image.combine_chunks().cast(pa.binary())
    paths = pa.nulls(len(encoded), pa.string())
    return pa.StructArray.from_arrays(
        [encoded, paths], fields=list(PICTURE), mask=encoded.is_null()
    )
