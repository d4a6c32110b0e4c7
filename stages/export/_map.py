"""Computes a map's rows, their plane, thumbnails and neighbours.

Unit vectors are rounded to fixed-point steps, so that products are integers, exact in float64:
neither batches nor threads change a bit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import CAPTION, CLUSTER_ID, IDENTITY, IMAGE, SAFETY, TEXT, UID
from clipmill.metadata.uid import uniform
from clipmill.pipeline.dataset import Shards, State, Task
from clipmill.stages.export._columns import as_pictures
from clipmill.stages.export._leaving import by_first_reason, kept
from clipmill.stages.ops.tables.combined import Combined
from clipmill.stages.ops.tables.ranges import RANGE, range_of
from clipmill.stages.ops.vectors.matrices import as_matrix, unit_rows

# Shapes: N rows of a shard or batch, D width of a vector, B rows of a block, M rows among which
# neighbours are searched, C bins of hashes.

X, Y, THUMBNAIL, CLUSTER, KEPT = "x", "y", "thumbnail", "cluster", "kept"
BATCH_ROWS = 64  # pictures in memory
MODE: Final = "keep_ratio_largest"
QUALITY = 80  # of a thumbnail

# A bin: exponent and ten bits of fraction of a hash in 0 to 1; 2^-53, the least, has exponent 970.
LEAST_EXPONENT = 960 << 10
BINS = (1024 << 10) - LEAST_EXPONENT


@dataclass(frozen=True)
class Pick:
    """A choice of the map's rows."""

    column: str
    only_kept: bool
    coins: Callable[[pa.ChunkedArray], NDArray[np.uint64]]  # random hashes of uids
    below: int = BINS  # rows in this bin of hashes, or above, are left out

    def __call__(
        self, batch: pa.Table
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], dict[str, int]]:
        """Returns (N, D) unit vectors, (N,) whether a row is taken, others counted by reason."""
        unit_ND = unit_rows(as_matrix(batch[self.column]))
        fine = {
            "not_kept": kept(batch) | (not self.only_kept),
            "no_embedding": np.isfinite(unit_ND).all(axis=1) & (unit_ND.shape[1] > 0),
            "no_cluster": batch[CLUSTER_ID.name].is_valid().to_numpy(),
            "beyond_rows": bins_of(self.coins(batch[UID.name])) < self.below,
        }
        return unit_ND, *by_first_reason(fine, len(batch))


@dataclass(frozen=True)
class Drawn(Combined):
    """The map's rows, with thumbnails of their pictures. Implements `Shards`."""

    over: Shards
    pick: Pick
    plane: NDArray[np.float64]
    bits: int  # of a uid range's number
    side: int
    columns: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.over)

    def batches(self, index: int, batch_rows: int = BATCH_ROWS) -> Iterator[pa.Table]:
        return map(self._drawn, self.over.batches(index, batch_rows))

    def table(self, index: int) -> pa.Table:
        return pa.concat_tables(self.batches(index))

    def empty(self) -> pa.Table:
        """Returns an empty table with the types of all columns."""
        return self._drawn(next(self.over.batches(0, 1)).slice(0, 0))

    def _drawn(self, batch: pa.Table) -> pa.Table:
        unit_ND, taken_N, _ = self.pick(batch)
        rows = batch.filter(pa.array(taken_N))
        place_N2 = on_plane(unit_ND[taken_N], self.plane)
        columns = {
            RANGE: range_of(rows[UID.name], self.bits),
            X: place_N2[:, 0],
            Y: place_N2[:, 1],
            THUMBNAIL: thumbnails(safe_images(rows), self.side),
            CAPTION.name: captions(rows),
            CLUSTER: rows[CLUSTER_ID.name],
            KEPT: kept(rows),
            **{name: rows[name] for name in (*IDENTITY, *self.columns)},
        }
        return pa.table(
            {
                name: values.cast(values.type.value_type)
                if isinstance(values, pa.ChunkedArray) and pa.types.is_dictionary(values.type)
                else values
                for name, values in columns.items()
            }
        )


def captions(rows: pa.Table) -> pa.ChunkedArray:
    """Returns the caption of each row; empty if the pool has no captions."""
    if TEXT.name in rows.column_names:
        return rows[TEXT.name]
    return pa.chunked_array([np.full(len(rows), "")], TEXT.dtype)


def safe_images(rows: pa.Table) -> pa.ChunkedArray:
    """Returns the pictures, null where a column calls one unsafe."""
    is_unsafe_N = np.zeros(len(rows), bool)
    for column in SAFETY:
        if column.name in rows.column_names:
            is_unsafe_N |= column.unsafe(rows[column.name])
    images = rows[IMAGE.name]
    return pc.if_else(pa.array(is_unsafe_N), pa.scalar(None, images.type), images)


def thumbnails(images: pa.ChunkedArray, side: int) -> pa.Array:
    """Returns {bytes, path: null}, each picture with its longer side at most `side`, or null."""
    from clipmill.stages.ops.images.decode import decode
    from clipmill.stages.ops.images.encoded import encode, probe
    from clipmill.stages.ops.images.opened import ImageError
    from clipmill.stages.ops.images.resize import reduction, resize

    def small(body: bytes | None) -> bytes | None:
        if body is None:
            return None
        try:
            header = probe(body)
            full = header.height, header.width
            rgb = decode(body, shrink=reduction(MODE, side, *full))
            return encode(resize(rgb, MODE, side, only_if_bigger=True, full=full), "jpg", QUALITY)
        except ImageError:
            return None

    return as_pictures(pa.array([small(image.as_py()) for image in images], pa.binary()))


FINE = 2.0**26  # steps of 1: a product of two unit vectors is below 2^53
COARSE = 2.0**15  # steps of 1: products summed over 2^33 rows fit into 64 bits
BLOCK_ROWS = 8192  # rows whose products are summed at a time
SCORES = 2**22  # (B, M) float64 products in memory: 32 MB


def moments(unit_ND: NDArray[np.float32]) -> State:
    """Returns the number of rows, their sum, and the sums of products of column pairs."""
    D = unit_ND.shape[1]
    sum_D, product_DD = np.zeros(D, np.int64), np.zeros((D, D), np.int64)
    for start in range(0, len(unit_ND), BLOCK_ROWS):
        step_BD = np.rint(unit_ND[start : start + BLOCK_ROWS].astype(np.float64) * COARSE)
        sum_D += step_BD.sum(axis=0).astype(np.int64)
        product_DD += (step_BD.T @ step_BD).astype(np.int64)
    return {"count": np.array(len(unit_ND)), "sum_D": sum_D, "product_DD": product_DD}


def plane_of(sums: State) -> NDArray[np.float64]:
    """Returns (D + 1, 2): the two directions of greatest variance, then the rows' mean on each.

    A direction has length 1, and its largest entry is positive; without a second one it is 0.
    Source: principal components (Hotelling 1933).
    Error: entries are rounded to 2^-26; the moments are of vectors in steps of 2^-15.
    """
    count = max(1, int(sums["count"]))
    mean_D = sums["sum_D"].astype(np.float64) / (count * COARSE)
    spread_DD = sums["product_DD"].astype(np.float64) / (count * COARSE**2)
    spread_DD -= np.outer(mean_D, mean_D)
    axis_D2 = np.zeros((len(mean_D), 2))
    if len(mean_D):
        most_DE = np.linalg.eigh(spread_DD)[1][:, ::-1][:, :2]
        largest_E = most_DE[np.abs(most_DE).argmax(axis=0), np.arange(most_DE.shape[1])]
        axis_D2[:, : most_DE.shape[1]] = np.rint(most_DE * np.sign(largest_E) * FINE) / FINE
    return np.vstack([axis_D2, mean_D @ axis_D2])


def on_plane(unit_ND: NDArray[np.float32], plane_E2: NDArray[np.float64]) -> NDArray[np.float32]:
    """Returns (N, 2), each vector's projection, relative to the mean of all rows."""
    if not len(unit_ND):  # the width may be 0
        return np.empty((0, 2), np.float32)
    step_D2 = plane_E2[:-1] * FINE
    return (in_steps(unit_ND) @ step_D2 / FINE**2 - plane_E2[-1]).astype(np.float32)


def in_steps(unit_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns (N, D), the vectors in integer steps of 1 / FINE."""
    return np.rint(unit_ND.astype(np.float64) * FINE)


def nearest_rows(unit_MD: NDArray[np.float32], row_M: NDArray[np.int64], k: int) -> pa.Array:
    """Returns {ids, distances} for each vector: itself, then the `k` nearest others.

    ids are rows, which must ascend; distances are 1 - cosine; ties go to the first row. With fewer
    others, lists are filled up with the row itself to length k + 1.
    """
    M = len(row_M)
    id_MK, distance_MK = np.repeat(row_M[:, None], k + 1, axis=1), np.zeros((M, k + 1), np.float32)
    k = max(0, min(k, M - 1))
    step_MD, block = in_steps(unit_MD), max(1, SCORES // max(1, M))
    for start in range(0, M if k else 0, block):
        score_BM = step_MD[start : start + block] @ step_MD.T
        B = len(score_BM)
        score_BM[np.arange(B), start + np.arange(B)] = -np.inf  # no row is its own neighbour
        least_B1 = np.partition(score_BM, M - k, axis=1)[:, M - k, None]
        above_BM = score_BM > least_B1
        equal_BM = score_BM == least_B1
        equal_BM &= np.cumsum(equal_BM, axis=1) <= k - above_BM.sum(axis=1, keepdims=True)
        near_Bk = np.nonzero(above_BM | equal_BM)[1].reshape(B, k)
        score_Bk = np.take_along_axis(score_BM, near_Bk, axis=1)
        order_Bk = np.argsort(-score_Bk, axis=1, kind="stable")
        id_MK[start : start + B, -k:] = row_M[np.take_along_axis(near_Bk, order_Bk, axis=1)]
        far_Bk = 1 - np.take_along_axis(score_Bk, order_Bk, axis=1) / FINE**2
        distance_MK[start : start + B, -k:] = np.maximum(far_Bk, 0)
    offsets = pa.array(np.arange(M + 1, dtype=np.int32) * id_MK.shape[1], pa.int32())
    ids, distances = pa.array(id_MK.ravel(), pa.int32()), pa.array(distance_MK.ravel())
    lists = [pa.ListArray.from_arrays(offsets, values) for values in (ids, distances)]
    return pa.StructArray.from_arrays(lists, ["ids", "distances"])


def bins_of(coin_N: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Returns (N,) a bin for each hash; its width is at most a thousandth of the hash."""
    bits_N = uniform(coin_N).view(np.int64) >> 42
    return np.maximum(bits_N - LEAST_EXPONENT, 0)


def cut(coins_C: NDArray, rows: int) -> int:
    """Returns the first bin to leave out, so that at most `rows` rows are taken."""
    return int(np.searchsorted(coins_C.cumsum(), rows, side="right"))


def surveyed(pick: Pick, shard: pa.Table) -> State:
    """Returns the moments of the rows that may be on the map, and the counts of hash bins."""
    unit_ND, taken_N, _ = pick(shard)
    bins_N = bins_of(pick.coins(shard[UID.name]))[taken_N]
    return moments(unit_ND[taken_N]) | {"coins_C": np.bincount(bins_N, minlength=BINS)}


def merged(a: State, b: State) -> State:
    """Adds two states; one of a shard without vectors has no width."""
    is_known = {name: (a[name].size == b[name].size) for name in a}
    return {
        name: np.add(a[name], b[name]) if is_known[name] else max(a[name], b[name], key=np.size)
        for name in a
    }


def counted(pick: Pick, rows: Shards, shard: int, task: Task) -> dict[str, int]:
    """Counts the rows of a shard, those on the map, and the others by reason."""
    table = rows.table(shard)
    _, taken_N, left = pick(table)
    return {"rows": len(table), "exported": int(np.count_nonzero(taken_N)), **left}
