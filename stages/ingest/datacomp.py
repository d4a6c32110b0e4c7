"""Reads DataComp's pool: metadata in Parquet, CLIP embeddings in .npz files beside it."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from tokenize import TokenError
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.globs import open_pool
from clipmill.metadata.schema import (
    FACE_BBOXES,
    ORIGINAL_HEIGHT,
    ORIGINAL_WIDTH,
    REASON,
    SHA256,
    TEXT,
    UID,
    URL,
    Column,
)
from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.errors import ShardError, StageError
from clipmill.pipeline.stage import DatasetStage, NonEmpty, OneUp, later, location
from clipmill.stages.ingest._columns import (
    SourceColumn,
    create_shards,
    head_of,
    refuse_misfits,
    refuse_uids,
    require,
)
from clipmill.stages.ops.tables.parquet_rows import (
    Source,
    parquet_counts,
    parquet_rows,
    scan_parquet,
)
from clipmill.stages.ops.tables.pools import (
    any_of,
    failing_its_shard,
    first_reason,
    fit,
    list_files,
    sizes_of,
    uid_column,
    uid_values,
)

SCORES = tuple(
    Column(f"clip_{name}_similarity_score", pa.float32(), "cosine", doc, better="high")
    for name, doc in (
        ("b32", "DataComp's ViT-B/32 CLIP score."),
        ("l14", "DataComp's ViT-L/14 CLIP score."),
    )
)
SCORE_TYPES = {"float32": pa.float32(), "float64": pa.float64()}
ELSE = "give a DataComp pool, or use ingest.parquet, whose settings name the columns"
AT_ONCE = 16  # batches fitted by one call: their rows hold no image
# Errors of a file that is no .npz, lacks an array, or has one that numpy cannot read.
NO_ARRAYS = zipfile.BadZipFile, zlib.error, KeyError, RuntimeError, TokenError, ValueError
WIDTHS = {"b32_img": 512, "b32_txt": 512, "l14_img": 768, "l14_txt": 768, "dedup": 256}


@dataclass(frozen=True, kw_only=True)
class DataComp(DatasetStage):
    """DataComp's columns, as published; null where the pool has no value.

    `scores: true` adds the published CLIP scores, in the type `score_type` and no other, and the
    face boxes; a file needs only the ones that a stage reads.
    The vectors of the .npz are columns too, read only when a stage asks: CLIP's b32_img, b32_txt
    (512 wide), l14_img, l14_txt (768), and dedup, ISC21's copy descriptor (256); float16 there,
    exact in float32. A uid that is not 32 hex digits is the hash of url and text (`bad_uid`). A
    file without rows is a shard without rows.

    Source: the pool of DataComp (Gadre et al. 2023), files as its downloader leaves them.
    Error: a file is known by name, size and time of change.
    Example: {path: pool/metadata}
    """

    version = 1
    determinism = "exact"
    takes = ()
    reasons = ("bad_uid", "no_url", "bad_value")
    virtual = tuple(
        Column(
            name, pa.list_(pa.float32(), width), "model space", "DataComp's vector of that name."
        )
        for name, width in WIDTHS.items()
    )

    path: NonEmpty = location()  # folder of the pool's Parquet files and .npz, here or s3://…
    scores: bool = False  # read the published CLIP scores and face boxes too
    # type of these scores, in which cuts are compared too
    score_type: Literal["float32", "float64"] = later("float32")
    shard_rows: OneUp = 10_000  # rows of one shard, the unit of work and of resuming

    @property
    def writes(self) -> tuple[Column, ...]:
        return URL, TEXT, ORIGINAL_WIDTH, ORIGINAL_HEIGHT, SHA256, *self.scored

    @property
    def scored(self) -> tuple[Column, ...]:
        """Returns the columns that `scores` adds."""
        dtype = SCORE_TYPES[self.score_type]
        scores = (replace(column, dtype=dtype) for column in SCORES)
        return (*scores, FACE_BBOXES) if self.scores else ()

    def files(self) -> dict[str, int]:
        return sizes_of(list_files(self.path, (".parquet",), "pool"))

    def counts(self) -> Iterator[tuple[int, int]]:
        return parquet_counts(self.path, (".parquet",), self.shard_rows)

    def head(self, rows: int) -> pa.Table:
        files = list_files(self.path, (".parquet",), "pool")
        return head_of(files, partial(scan, self), partial(read, self), rows)

    def run(self, inputs: Inputs, ctx: Context) -> None:
        folder, _ = open_pool(self.path)  # embeddings need not match a glob of metadata
        listing = list_files(folder.uri, (".parquet", ".npz"), ctx.worker.stage)
        digest = {file["path"]: file["digest"] for file in listing}
        files = [
            # New embeddings change the digest, so that what depends on them is computed again.
            {**file, "digest": f"{file['digest']} {digest.get(npz_of(file['path']), '')}".strip()}
            for file in list_files(self.path, (".parquet",), ctx.worker.stage)
        ]
        scanned = ctx.map(partial(scan, self), files)
        for file, scanned_file in zip(files, scanned, strict=True):
            self._refuse(ctx.wanted, scanned_file["unfit"], f"{folder}/{file['path']}")
        create_shards(ctx, partial(read, self), scanned)

    def check_columns(self, names: Set[str]) -> None:
        folder, _ = open_pool(self.path)
        first = list_files(self.path, (".parquet",), "pool")[0]
        self._refuse(names, scan(self, first, None)["unfit"], f"{folder}/{first['path']}")

    def _refuse(self, names: Set[str], unfit: Mapping[str, str | None], where: str) -> None:
        """Raises a StageError where a column that stages read is missing or of another type."""
        types = {name: unfit[name] or "" for name in sorted(names & unfit.keys())}
        if missing := [name for name, found in types.items() if not found]:
            do = "give a pool that has it, or leave out what reads it"
            raise StageError(f"no column '{missing[0]}', and a stage reads it", where, do)
        if not types:
            return
        # Beside these stand the scores that do fit, as one setting has to be right for all.
        said = str(SCORE_TYPES[self.score_type])
        types |= {c.name: said for c in SCORES if c.name in names and c.name not in unfit}
        kinds = {str(dtype): kind for kind, dtype in SCORE_TYPES.items()}
        held = set(types.values())
        if not held <= kinds.keys():
            do = "store it as float32 or float64: a cut is held in the type that is stored"
        elif len(held) > 1:
            extra = ", ".join(f"{name}: {found}" for name, found in types.items())
            do = f"read each in its own type: ingest.parquet with extra: {{{extra}}}"
        else:
            do = f"write score_type: {kinds[held.pop()]}, in which cuts are then held"
        found = " and ".join(f"'{name}' is {dtype}" for name, dtype in types.items())
        raise StageError(f"{found}, and score_type is {self.score_type}", where, do)

    def load_virtual(self, names: list[str], source: Mapping[str, Any]) -> pa.Table:
        storage, _ = open_pool(self.path)
        path = npz_of(source["path"])
        where = f"{storage}/{path}"
        with (
            failing_its_shard(where, *NO_ARRAYS),
            storage.open(path) as file,
            np.load(file, allow_pickle=False) as arrays,
        ):
            return pa.table({name: _rows_of(arrays, name, source, where) for name in names})


def npz_of(path: str) -> str:
    """Returns the embeddings' file beside a Parquet file."""
    return path.removesuffix(".parquet") + ".npz"


def scan(stage: DataComp, file: Mapping[str, Any], task: Task | None) -> dict[str, Any]:
    """Returns the file's sources, in groups that are read as one, and its unfit columns.

    The latter map name to type, null if the column is missing.
    """
    storage, _ = open_pool(stage.path)
    groups, schema = scan_parquet(storage, file, stage.shard_rows)
    if schema is None:
        return {"groups": groups, "unfit": {}}
    present = {
        column: schema.field(column.name).type
        for column in stage.scored
        if column.name in schema.names
    }
    needed = (UID.name, URL.name, TEXT.name)
    columns = {name: name for name in (*needed, *(c.name for c in present))}
    require(columns, schema.names, f"{storage}/{file['path']}", ELSE)
    unfit = {column.name: None for column in stage.scored if column not in present}
    other = {c.name: str(dtype) for c, dtype in present.items() if is_other(c, dtype)}
    return {"groups": groups, "unfit": unfit | other}


def is_other(column: Column, dtype: pa.DataType) -> bool:
    """Returns whether scores are not of `score_type`: rounding could move a row past a cut."""
    return column.dtype in SCORE_TYPES.values() and dtype not in (column.dtype, pa.null())


def read(
    stage: DataComp, group: Sequence[Source], task: Task | None, is_tried: bool = False
) -> Iterator[Iterator[pa.Table]]:
    """Yields each source's rows in the stage's columns; one empty table if there are none."""
    storage, _ = open_pool(stage.path)
    where = f"{storage}/{group[0]['path']}"
    columns = (UID, *stage.writes, REASON)
    none = pa.schema([(column.name, column.dtype) for column in columns]).empty_table()
    names = [column.name for column in columns[:-1]]
    tried, at_once = (where, 1) if is_tried else (None, AT_ONCE)
    convert = partial(fitted, columns[1:-1], tried=tried)

    def stored(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        yield none
        with failing_its_shard(where):
            yield from map(own_reasons, tables)

    with failing_its_shard(where):
        each = parquet_rows(storage, group, names, at_once=at_once, convert=convert)
        yield from map(stored, each)


def own_reasons(rows: pa.Table) -> pa.Table:
    """Returns the rows with no reason in their dictionary that none of them has."""
    reason = rows[REASON.name]
    if not any(len(chunk.dictionary) for chunk in reason.chunks):
        return rows
    own = reason.cast(pa.string()).dictionary_encode()
    return rows.set_column(rows.schema.get_field_index(REASON.name), REASON.name, own)


def fitted(columns: Sequence[Column], rows: pa.Table, tried: str | None) -> pa.Table:
    """Returns rows of a file in the columns that the stage writes.

    With `tried`, the file's name, StageError for a column most of whose values are unfit.
    """
    raw = {column: pa.nulls(len(rows)) for column in columns}
    for column in raw:
        if column.name in rows.column_names and not is_other(column, rows[column.name].type):
            raw[column] = rows[column.name]
    fits = {column.name: fit(values, column.dtype) for column, values in raw.items()}
    values = {name: column for name, (column, _) in fits.items()}
    uid = uid_values(rows[UID.name])
    if tried:
        refuse_uids(UID.name, rows[UID.name], uid.is_null(), tried, ELSE)
        for column, (_, misfit) in zip(raw, fits.values(), strict=True):
            source = SourceColumn("", column.name, column)
            refuse_misfits(source, raw[column], misfit, tried, do=ELSE)
    masks = {
        "bad_uid": uid.is_null(),
        "no_url": pc.fill_null(pc.equal(values[URL.name], ""), True),
        "bad_value": any_of([misfit for _, misfit in fits.values()], len(rows)),
    }
    known = uid_column(uid, values[URL.name], values[TEXT.name])
    return pa.table({UID.name: known, **values, REASON.name: first_reason(masks)})


def _rows_of(arrays: Any, name: str, source: Mapping[str, Any], where: str) -> pa.Array:
    """Returns the source's part of an array with a row for each row of the Parquet file."""
    expected = (source["rows"], WIDTHS[name])
    shape, dtype = _stated(arrays, name)
    if shape != expected or dtype.kind not in "fiu":
        raise ShardError(
            found=f"{name} of shape {shape} and type {dtype}, not {expected} and float16",
            where=where,
            do="put the .npz that belongs to the Parquet file beside it",
        )
    part_ND = arrays[name][source["start"] : source["stop"]].astype(np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(part_ND.reshape(-1)), expected[1])


def _stated(arrays: Any, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Returns shape and type of an array as stated: a packed megabyte may hold a gigabyte."""
    with arrays.zip.open(f"{name}.npy") as member:
        is_first = np.lib.format.read_magic(member) == (1, 0)
        read = (
            np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(member)
    return shape, dtype
