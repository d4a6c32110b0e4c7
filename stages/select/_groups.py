"""Groups rows by a column's values and gives each row its place among the rows of its value.

A value may have more rows than a machine holds (`en` in a billion), and there may be more values
than rows in a partition. Rows of a rare value meet in one partition. A frequent value is cut into
slices, each a range of the coins that rank its rows; a slice's places begin where those of the
lower slices end. Memory is bounded by a partition, and places depend on the rows alone.
"""

import hashlib
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.metadata.schema import UID
from clipmill.metadata.uid import coin, coin_hash
from clipmill.pipeline.dataset import Context, Shards, State
from clipmill.stages.ops.tables.rows import added, in_order, joined

# Shapes: N rows, B buckets, G slices of values in a partition; of the pool, V frequent values and
# M slices of them.

BUCKETS = 1 << 16  # hash buckets in which values are counted
SLICE_ROWS = 1 << 16  # a bucket of more rows is sliced
VALUE = "value"  # the value that groups rows; null for rows in no group
PLACE = "place"  # among the rows of its value, 0 up by coin; null without a value
SIZE = "size"  # rows of its value
OFFSET = "offset"  # a coin of its value, in [0, 1)


Known = dict[bytes, tuple[int, int, float]]  # of a slice: rows before it, its value's, its offset


@dataclass(frozen=True, kw_only=True)
class Slices:
    """The number of slices of each bucket's rows, and the coins that cut them."""

    seed: int
    stage: str
    count: NDArray[np.uint64]  # (BUCKETS,)

    def bits(self, uid: pa.ChunkedArray) -> NDArray[np.uint64]:
        """Returns (N,) the coins that rank rows of one value."""
        return coin_hash(uid, seed=self.seed, stage=self.stage, purpose="place")


def placed(rows: Shards, ctx: Context) -> Shards:
    """Adds PLACE, SIZE and OFFSET to the rows, in partitions; drops VALUE."""
    rows_B = np.asarray(ctx.reduce(rows_by_bucket, rows, added)["rows"], np.int64)
    count_B = (-(-rows_B // SLICE_ROWS)).astype(np.uint64)
    cut = Slices(seed=ctx.worker.seed, stage=ctx.worker.stage, count=count_B)
    met = ctx.shuffle(ctx.map_shards(partial(with_unit, cut), rows), "unit")
    known: Known = {}
    if (count_B > 1).any():
        known = known_slices(ctx.reduce(partial(slices_of, cut), met, joined))
    return ctx.map_shards(partial(with_place, cut, known), met)


def rows_by_bucket(rows: pa.Table) -> State:
    values = rows[VALUE].drop_null()
    return {"rows": np.bincount(bucket_of(values), minlength=BUCKETS)}


def bucket_of(values: pa.ChunkedArray) -> NDArray[np.int64]:
    """Returns (N,) the bucket of each value; results do not depend on the choice."""
    import polars as pl  # imported late: a plan does not need it

    hashed = pl.DataFrame(pa.table({VALUE: values})).to_series().hash(seed=1)
    return (hashed.to_numpy() % np.uint64(BUCKETS)).astype(np.int64)


def with_unit(cut: Slices, rows: pa.Table) -> pa.Table:
    """Adds the bucket and slice in which rows meet; rows without a value are spread."""
    bits_N = cut.bits(rows[UID.name])
    bucket_N = bucket_of(rows[VALUE])
    slice_N = (bits_N >> np.uint64(32)) * cut.count[bucket_N] >> np.uint64(32)
    unit_N = slice_N.astype(np.int64) * BUCKETS + bucket_N
    has_none_N = rows[VALUE].is_null().to_numpy()
    spread_N = -1 - (bits_N >> np.uint64(44)).astype(np.int64)
    return rows.append_column("unit", pa.array(np.where(has_none_N, spread_N, unit_N)))


@dataclass(frozen=True)
class Ranked:
    """The rows with a value in the order of their places, by slice of a value."""

    order: NDArray[np.int64]  # (N,)
    start: NDArray[np.int64]  # (G,) of each slice in that order
    rows: NDArray[np.int64]  # (G,)
    digest: dict[int, bytes]  # by slice index: `key_of` value and number; sliced values only
    offset: NDArray[np.float64]  # (G,) a coin of each slice's first row

    @classmethod
    def of(cls, cut: Slices, met: pa.Table) -> "Ranked":
        code = met[VALUE].combine_chunks().dictionary_encode()
        code = code.combine_chunks() if isinstance(code, pa.ChunkedArray) else code
        code_N = code.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        unit_N = met["unit"].to_numpy()
        order = in_order(met, unit_N, code_N, cut.bits(met[UID.name]))
        order = order[code_N[order] >= 0]
        key_N2 = np.stack([unit_N[order], code_N[order]], axis=1)
        begins_N = np.append(True, (key_N2[1:] != key_N2[:-1]).any(axis=1))[: len(order)]
        start_G = np.flatnonzero(begins_N)
        firsts = met[UID.name].take(pa.array(order[start_G]))
        offset_G = coin(firsts, seed=cut.seed, stage=cut.stage, purpose="offset")
        slice_G, bucket_G = np.divmod(key_N2[start_G, 0], BUCKETS)
        sliced = np.flatnonzero(cut.count[bucket_G] > 1)
        values = code.dictionary.take(pa.array(key_N2[start_G[sliced], 1])).to_pylist()
        of_slices = zip(sliced.tolist(), values, slice_G[sliced].tolist(), strict=True)
        digests = {g: key_of(value, number) for g, value, number in of_slices}
        rows_G = np.diff(np.append(start_G, len(order)))
        return cls(order, start_G, rows_G, digests, offset_G)


def key_of(value: object, number: int) -> bytes:
    """Returns 128 bits of a value, then 64 of its slice's number."""
    digest = hashlib.blake2b(repr(value).encode(), digest_size=16).digest()
    return digest + np.uint64(number).tobytes()


def slices_of(cut: Slices, met: pa.Table) -> State:
    """Returns the slices of sliced values; each lies in one partition."""
    ranked = Ranked.of(cut, met)
    sliced = [*ranked.digest]
    key_M3 = np.frombuffer(b"".join(ranked.digest.values()), np.uint64).reshape(-1, 3)
    return {
        "digest": key_M3[:, :2],
        "slice": key_M3[:, 2],
        "rows": ranked.rows[sliced],
        "offset": ranked.offset[sliced],
    }


def known_slices(slices: State) -> Known:
    """Returns by slice of a frequent value the rows before it, its value's rows and offset."""
    order = np.lexsort((slices["slice"], slices["digest"][:, 1], slices["digest"][:, 0]))
    digest_M2, slice_M = slices["digest"][order], slices["slice"][order]
    rows_M = np.asarray(slices["rows"], np.int64)[order]
    _, first_M, value_M = np.unique(digest_M2, axis=0, return_index=True, return_inverse=True)
    value_M = value_M.reshape(-1)
    ends_M = np.cumsum(rows_M)
    begins_V = (ends_M - rows_M)[first_M]
    before_M = ends_M - rows_M - begins_V[value_M]
    total_V = np.bincount(value_M, rows_M, len(begins_V)).astype(np.int64)
    offset_V = slices["offset"][order][first_M]
    keys = (d.tobytes() + n.tobytes() for d, n in zip(digest_M2, slice_M, strict=True))
    values = before_M.tolist(), total_V[value_M].tolist(), offset_V[value_M].tolist()
    return dict(zip(keys, zip(*values, strict=True), strict=True))


def with_place(cut: Slices, known: Known, met: pa.Table) -> pa.Table:
    """Adds each row's place among the rows of its value, their number, and the value's coin."""
    ranked = Ranked.of(cut, met)
    before_G, total_G = np.zeros(len(ranked.rows), np.int64), ranked.rows.copy()
    offset_G = ranked.offset.copy()
    for g, digest in ranked.digest.items():
        before_G[g], total_G[g], offset_G[g] = known[digest]
    within_N = np.arange(len(ranked.order)) - np.repeat(ranked.start, ranked.rows)
    columns = {
        PLACE: np.repeat(before_G, ranked.rows) + within_N,
        SIZE: np.repeat(total_G, ranked.rows),
        OFFSET: np.repeat(offset_G, ranked.rows),
    }
    has_none_N = met[VALUE].is_null().to_numpy()
    out = met.select([n for n in met.column_names if n not in (VALUE, "unit")])
    for name, ordered_N in columns.items():
        whole_N = np.zeros(len(met), ordered_N.dtype)
        whole_N[ranked.order] = ordered_N
        out = out.append_column(name, pa.array(whole_N, mask=has_none_N))
    return out
