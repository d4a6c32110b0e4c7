"""Finds near copies of images, by perceptual hashes that differ in few bits."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta

from clipmill.metadata.schema import DUPLICATE_OF, IDENTITY, PHASH, Column
from clipmill.pipeline.dataset import Context, Inputs
from clipmill.pipeline.stage import NonEmpty, later
from clipmill.stages.ops.tables.keeper import PREFERENCE, KeepsBest, Order, preference
from clipmill.stages.ops.tables.rows import DROPPED, dropped_before

JOINED_AT = Column(
    "joined_at",
    pa.int32(),
    "bits, 0 to `max_distance`",
    "Hamming distance at which the row's group falls to a better row; null where it never does.",
    better="high",
)
DISTANCE = Column("distance", pa.int32(), "bits", "Of the two hashes.")


@dataclass(frozen=True, kw_only=True)
class PHashDuplicate(KeepsBest):
    """Distance at which a row's group falls to a better row, in bits; null if it never does.

    A row is a duplicate at distance d exactly when joined_at <= d, for every d up to
    `max_distance`: `joined_at IS NULL OR joined_at > 2` keeps one row of each group at 2. Groups
    are those of single linkage: a chain of near pairs is one. duplicate_of is the best row at
    `max_distance`.

    `pairs: true` stores out/pairs.parquet too (uid, other_uid, distance; sorted): all pairs of
    distinct hashes within `max_distance`, each by the best rows of the two; and each row with the
    best row of its equal hashes, at 0.

    Source: neighbours by pigeonholes as in multi-index hashing (Norouzi et al. 2012); groups by
    star contraction (Kiveris et al. 2014).
    Error: none, all pairs are found. Pairs to compare grow with the square of the rows past about
    10^8 of them, and fast with the distance (docs/dedup.md). Flat images are near each other.
    Example: {after: [ingest.image_folder, annotate.phash]}
    """

    # most bits apart at which rows are joined, 0 to 10; even, as half of a pHash's bits are 1
    max_distance: Annotated[int, Meta(ge=0, le=10)] = 2
    column: NonEmpty = PHASH.name  # column of the fingerprints to compare: phash or dhash
    pairs: bool = later(False)  # store all near pairs too, in out/pairs.parquet

    version = 1
    writes = (JOINED_AT, DUPLICATE_OF)
    reasons = (DROPPED, "no_hash")

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        return {JOINED_AT.name: (0, self.max_distance)}

    @property
    def reads(self) -> tuple[Column | str, ...]:
        return (replace(PHASH, name=self.column), *self.deciding)

    def candidates(self, rows: int) -> float:
        """Returns the number of comparisons of unrelated codes, which share a key by chance."""
        from clipmill.stages.dedup._hamming import masks

        chance = sum(0.5 ** np.bitwise_count(mask) for mask in masks(self.max_distance))
        return float(chance) * rows**2 / 2

    def run(self, inputs: Inputs, ctx: Context) -> None:
        from clipmill.stages.dedup._hamming import masks
        from clipmill.stages.dedup._linkage import link
        from clipmill.stages.dedup._pairs import put_pairs
        from clipmill.stages.ops.tables.combined import Concatenated

        ctx.say("comparing picture hashes")
        partitions = ctx.partitions(inputs.rows)
        hashed = ctx.map_shards(partial(with_hash, self.column, self.keep), inputs.rows)
        rows = ctx.shuffle(hashed, "node", partitions)  # equal hashes meet
        filed = ctx.map_shards(partial(filed_under_keys, self.max_distance), rows)
        # Each code is filed under many keys, in rows that are a quarter as wide.
        wide = max(1, partitions * len(masks(self.max_distance)) // 4)
        met = ctx.shuffle(filed, "key", wide)
        near = ctx.map_shards(partial(near_edges, self), met)
        edges = ctx.shuffle(near, "a", partitions)
        ctx.drop(met)
        if self.pairs:
            put_pairs(ctx, rows, edges, equal=0, value=DISTANCE)
        linked = link(ctx, rows, edges, equal=0, partitions=partitions, joined_at=JOINED_AT)
        unhashed = ctx.map_shards(partial(without_hash, self.column), inputs.rows)
        ctx.restore(Concatenated((unhashed, linked)))


def with_hash(column: str, order: Order, shard: pa.Table) -> pa.Table:
    """Returns the rows with a hash, in the columns that `link` takes."""
    rows = shard.select(IDENTITY)
    rows = rows.append_column(PREFERENCE.name, preference(order, shard))
    rows = rows.append_column("node", shard[column])
    return rows.filter(pc.and_not(pc.is_valid(rows["node"]), dropped_before(shard)))


def without_hash(column: str, shard: pa.Table) -> pa.Table:
    """Returns the rows without a hash, with the reason."""
    from clipmill.stages.dedup._linkage import unlinked

    missing = pc.make_struct(dropped_before(shard), shard[column].is_null())
    return unlinked(shard, JOINED_AT, pc.case_when(missing, *PHashDuplicate.reasons))


def filed_under_keys(max_distance: int, rows: pa.Table) -> pa.Table:
    """Returns each distinct code of a partition, under each of its keys."""
    from clipmill.stages.dedup._hamming import keys

    code_N = np.unique(rows["node"].to_numpy())
    key_NK = keys(code_N, max_distance)
    code = np.repeat(code_N, key_NK.shape[1])
    return pa.table({"key": pa.array(key_NK.ravel()), "code": pa.array(code)})


def near_edges(stage: PHashDuplicate, met: pa.Table) -> pa.Table:
    """Returns all pairs of near codes under an equal key with `pairs`, else a spanning forest."""
    from clipmill.stages.dedup._hamming import every_pair, near_pairs
    from clipmill.stages.dedup._linkage import as_edges, forest

    code_N = met["code"].to_numpy()
    pairs = every_pair if stage.pairs else near_pairs
    a, b, distance = pairs(met["key"].to_numpy(), code_N, stage.max_distance)
    edges = as_edges(code_N[a], code_N[b], distance.astype(np.float32))
    return edges if stage.pairs else forest(edges)
