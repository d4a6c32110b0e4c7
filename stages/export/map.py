"""Exports the rows as a map: one Parquet file that the viewer `embedding-atlas` opens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta
from numpy.typing import NDArray

from clipmill.metadata.schema import (
    CAPTION,
    CLUSTER_ID,
    IDENTITY,
    IMAGE,
    IMAGE_EMBEDDING,
    KEEP,
    POSITION,
    SAFETY,
    SHARD,
    TEXT,
    UID,
    Column,
)
from clipmill.metadata.shard import ShardWriter
from clipmill.metadata.uid import coin_hash
from clipmill.pipeline.dataset import Context, Inputs, Shards, Task
from clipmill.pipeline.stage import DatasetStage, NonEmpty, OneUp
from clipmill.stages.export._columns import check_columns, with_hex_ids
from clipmill.stages.export._documents import describe
from clipmill.stages.export._map import (
    CLUSTER,
    KEPT,
    THUMBNAIL,
    Drawn,
    Pick,
    X,
    Y,
    counted,
    cut,
    merged,
    nearest_rows,
    on_plane,
    plane_of,
    surveyed,
)
from clipmill.stages.ops.tables.ranges import RANGE, Ranges, bits_for, range_of, ranged
from clipmill.stages.ops.tables.rows import in_order
from clipmill.stages.ops.vectors.matrices import as_matrix

# Shapes: N rows of a shard or of whole clusters, R ranges of the file.

MAP, NEIGHBORS = "map.parquet", "neighbors"
ROW = "row"  # of the file, from 0
RANGE_ROWS = 2**14  # rows of a uid range, written at a time
FIXED = (X, Y, THUMBNAIL, CAPTION.name, CLUSTER, KEPT, UID.name, NEIGHBORS, IMAGE.name)
SOUGHT = 2**14  # cap on the rows among which neighbours are searched
Pixels = Annotated[int, Meta(ge=16, le=512)]
Rows = Annotated[int, Meta(ge=1, lt=2**31)]


@dataclass(frozen=True, kw_only=True)
class Map(DatasetStage):
    """map.parquet: the rows that have an embedding and a cluster, ordered by uid.

    `x` and `y` are the projection on the plane of the two principal components of all these rows;
    `thumbnail` is the picture ({bytes, path: null}; null without one, and of one that a stage
    before it calls unsafe: nsfw_score > 0.2, punsafe > 0.5, safety_tag not UNLIKELY); then
    `caption`, `cluster`, `kept` (true without a select stage before), `uid` as 32 hex digits, the
    chosen columns, and `neighbors`: {ids: rows of this file from 0, distances: 1 - cosine} of the
    row itself and the nearest of its cluster, nearest first. The viewer needs lists of one length:
    the row's own number fills a short one. If there are more rows than `rows`, those with the
    lowest uid hashes are exported; the plane does not change.

    Source: the columns that embedding-atlas 0.26 takes by `--x --y --text --image --neighbors`.
    Departs: no neighbours in other clusters; a cluster of more than 16,384 rows on the map is split
    along `x` into runs of up to that many, each searched alone.
    Error: cosines to 2^-26; a map cut to `rows` may have up to a thousandth fewer.
    Example: {after: [ingest.image_folder, embed.clip, cluster.kmeans, score.clip_score],
      columns: [clip_score]}
    """

    rows: Rows = 1_000_000  # cap; a viewer takes a few million
    columns: tuple[NonEmpty, ...] = ()  # further columns, as `name` or `stage.name`
    only_kept: bool = False  # leave out rows that an earlier select drops
    column: NonEmpty = IMAGE_EMBEDDING.name  # the embeddings to draw
    neighbors: OneUp = 10  # of each row, not counting itself
    side: Pixels = 80  # pixels of a thumbnail's longer side

    version = 2
    determinism = "exact"
    formats = ("map",)
    gives = ("data",)
    reasons = ("not_kept", "no_embedding", "no_cluster", "beyond_rows")

    def __post_init__(self) -> None:
        check_columns(self.columns, FIXED)

    @property
    def reads(self) -> tuple[Column | str, ...]:
        return IMAGE, replace(IMAGE_EMBEDDING, name=self.column), CLUSTER_ID, *self.columns

    @property
    def optional_reads(self) -> tuple[Column | str, ...]:
        return TEXT, KEEP, *SAFETY

    def run(self, inputs: Inputs, ctx: Context) -> None:
        seed, stage = ctx.worker.seed, ctx.worker.stage
        coins = partial(coin_hash, seed=seed, stage=stage, purpose="map")
        named = (self.column, CLUSTER_ID.name, KEEP.name)
        rows = ctx.keep_local(inputs.rows.select(named))  # read four times, without pictures
        pick = Pick(self.column, self.only_kept, coins)
        ctx.say("laying out the map")
        sums = ctx.reduce(partial(surveyed, pick), rows, merged)
        pick, plane = replace(pick, below=cut(sums["coins_C"], self.rows)), plane_of(sums)
        counts = ctx.map(partial(counted, pick, rows), list(range(len(rows))))
        total = {name: sum(count[name] for count in counts) for name in counts[0]}
        bits = bits_for(total["exported"], RANGE_ROWS)
        by_uid = ctx.shuffle(ctx.map_shards(partial(placed, pick, bits), rows), RANGE, 2**bits)
        sizes = ctx.map(partial(sizes_of, by_uid), list(range(len(by_uid))))
        numbers = ctx.map_shards(partial(numbered, firsts(sizes)), by_uid)
        ctx.say("finding neighbours")
        by_cluster = ctx.shuffle(numbers, CLUSTER, ctx.partitions(rows))
        ctx.drop(by_uid)
        beside = partial(neighbours, plane, self.neighbors)
        near = ranged(ctx, ctx.map_shards(beside, by_cluster), bits)
        ctx.drop(by_cluster)
        ctx.say("drawing thumbnails")
        drawn = Drawn(inputs.rows, pick, plane, bits, self.side, self.columns)
        pictures = ctx.shuffle(drawn, RANGE, 2**bits)  # partitioned like the neighbours
        ctx.say("")
        (file,) = ctx.map(partial(write_map, drawn, pictures, near), [MAP])
        ctx.drop(near.shuffled)
        ctx.drop(pictures)
        columns = file.pop("columns")
        files = [{**file, "rows": total["exported"]}]
        describe(ctx, "map", total, columns, files, made_by=inputs.steps)


def placed(pick: Pick, bits: int, shard: pa.Table) -> pa.Table:
    """Returns the rows on the map: identity, cluster, unit vector, and range of the uid."""
    unit_ND, taken_N, _ = pick(shard)
    rows = shard.select([*IDENTITY, CLUSTER_ID.name]).filter(pa.array(taken_N))
    rows = rows.rename_columns([*IDENTITY, CLUSTER])
    rows = rows.append_column(RANGE, range_of(rows[UID.name], bits))
    # Lists of no fixed width, as a shard without vectors has none.
    ends = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * unit_ND.shape[1], pa.int32())
    return rows.append_column("unit", pa.ListArray.from_arrays(ends, unit_ND[taken_N].ravel()))


def sizes_of(by_uid: Shards, partition: int, task: Task) -> dict[str, int]:
    """Counts the rows of each range in one partition."""
    counted = pc.value_counts(by_uid.table(partition)[RANGE].combine_chunks()).to_pylist()
    return {str(count["values"]): count["counts"] for count in counted}


def firsts(sizes: Sequence[dict[str, int]]) -> dict[int, int]:
    """Returns the number of the first row of each range."""
    rows = sorted((int(number), count) for part in sizes for number, count in part.items())
    starts = accumulate((count for _, count in rows), initial=0)
    return {number: start for (number, _), start in zip(rows, starts, strict=False)}


def numbered(first: dict[int, int], rows: pa.Table) -> pa.Table:
    """Adds each row's number on the map; `rows` are whole ranges."""
    rows = rows.take(in_order(rows))  # by uid, hence by range
    range_N = rows[RANGE].to_numpy()
    rank_N = np.arange(len(rows)) - np.searchsorted(range_N, range_N)
    range_R, which_N = np.unique(range_N, return_inverse=True)
    start_R = np.array([first[number] for number in range_R.tolist()], np.int64)
    return rows.append_column(ROW, pa.array(start_R[which_N] + rank_N, pa.int64()))


def neighbours(plane: NDArray, k: int, rows: pa.Table) -> pa.Table:
    """Returns the neighbours of every row, and its range; `rows` are whole clusters."""
    unit_ND = as_matrix(rows["unit"])
    row_N, cluster_N = rows[ROW].to_numpy(), rows[CLUSTER].to_numpy()
    order_N = np.lexsort((row_N, on_plane(unit_ND, plane)[:, 0], cluster_N))
    next_clusters = np.flatnonzero(np.diff(cluster_N[order_N])) + 1
    runs = [
        run[np.argsort(row_N[run])]
        for members in np.split(order_N, next_clusters)  # without rows: one empty run
        for run in np.array_split(members, max(1, -(-len(members) // SOUGHT)))
    ]
    near = [nearest_rows(unit_ND[run], row_N[run], k) for run in runs]
    rows = rows.select([*IDENTITY, RANGE, ROW]).take(np.concatenate(runs))
    return rows.append_column(NEIGHBORS, pa.chunked_array(near))


def write_map(
    drawn: Drawn, pictures: Shards, near: Ranges, name: str, task: Task
) -> dict[str, Any]:
    """Writes the ranges of the file in order; returns the file and its columns."""
    path = task.worker.scratch / name
    none = nearest_rows(np.empty((0, 0), np.float32), np.empty(0, np.int64), 0)
    schema = finished(drawn.empty(), none).schema
    with ShardWriter(path, schema, task.page_checksums) as writer:
        for number, partition in sorted(near.place.items()):
            rows = part(pictures.table(partition), number)
            beside = part(near.shuffled.table(partition), number)
            writer.add(finished(rows, beside[NEIGHBORS].combine_chunks()))
        sha256, size_bytes = writer.close()
    task.put_file(name, path)
    columns = [[field.name, str(field.type)] for field in schema]
    return {"file": name, "bytes": size_bytes, "sha256": sha256, "columns": columns}


def part(rows: pa.Table, number: int) -> pa.Table:
    """Returns the rows of one range, in the file's order."""
    rows = rows.filter(pc.equal(rows[RANGE], number))
    return rows.take(in_order(rows))


def finished(rows: pa.Table, near: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Converts the rows to the file's columns."""
    return with_hex_ids(
        rows.drop_columns([SHARD.name, POSITION.name, RANGE]).append_column(NEIGHBORS, near)
    )
