"""Writes the near pairs of a pool: two uids and how near they are, each pair once, sorted."""

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.metadata.schema import UID, Column
from clipmill.metadata.uid import halves
from clipmill.pipeline.dataset import Context, Shards, State, Task
from clipmill.stages.dedup._linkage import NODE
from clipmill.stages.ops.tables.combined import Concatenated, Zipped
from clipmill.stages.ops.tables.keeper import best_first
from clipmill.stages.ops.tables.ranges import RANGE, Ranges, bits_for, range_of, ranged
from clipmill.stages.ops.tables.rows import added

# Shapes: N rows or pairs, V nodes, E edges.

FILE = "pairs.parquet"
RANGE_ROWS = 2**20  # pairs sorted at a time, about
OTHER = "other_uid"  # the greater of the two


def put_pairs(ctx: Context, rows: Shards, edges: Shards, *, equal: float, value: Column) -> None:
    """Stores out/pairs.parquet: uid, other_uid and the value of each pair, sorted by the two.

    `rows` and `edges` are as `link` takes them, each edge once. An edge gives the pair of its
    nodes' best rows; each other row of a node gives a pair with the best row of the node, at
    `equal`. So there are only as many pairs as rows and edges, even if many rows are equal.
    """
    halfway = ctx.shuffle(Zipped(with_first, (rows, edges)), "b", len(edges))
    named = Zipped(with_second, (rows, halfway))
    pairs = Concatenated((Zipped(partial(of_equals, equal), (rows,)), named))
    most = int(ctx.reduce(counted, Concatenated((rows, edges)), added)["rows"])
    bits = bits_for(most, RANGE_ROWS)
    by_range = ranged(ctx, Zipped(partial(in_ranges, bits), (pairs,)), bits)
    ctx.drop(halfway)
    ctx.map(partial(write, by_range, value), [FILE])


def best_of(rows: pa.Table) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Returns (V,) the nodes of a partition, ascending, and (V,) the index of its best row."""
    order_N = best_first(rows)
    node_V, first_V = np.unique(rows[NODE.name].to_numpy()[order_N], return_index=True)
    return node_V, order_N[first_V]


def uids_at(rows: pa.Table, node_E: NDArray[np.uint64]) -> pa.Array:
    """Returns the uid of the best row of each node."""
    node_V, best_V = best_of(rows)
    return rows[UID.name].combine_chunks().take(pa.array(best_V[np.searchsorted(node_V, node_E)]))


def with_first(rows: pa.Table, edges: pa.Table) -> pa.Table:
    """Returns the edges, with a uid for the first node of each."""
    uid = uids_at(rows, edges["a"].to_numpy())
    return pa.table({UID.name: uid, "b": edges["b"], "height": edges["height"]})


def with_second(rows: pa.Table, halfway: pa.Table) -> pa.Table:
    """Returns the pairs, with a uid for the second node too."""
    first, second = halfway[UID.name].combine_chunks(), uids_at(rows, halfway["b"].to_numpy())
    return in_pairs(first, second, halfway["height"].combine_chunks())


def of_equals(equal: float, rows: pa.Table) -> pa.Table:
    """Returns a pair with the node's best row for each of its other rows."""
    _, best_V = best_of(rows)
    others = rows.take(pa.array(np.setdiff1d(np.arange(len(rows)), best_V)))
    best = uids_at(rows, others[NODE.name].to_numpy())
    height = pa.array(np.full(len(others), equal, np.float32))
    return in_pairs(others[UID.name].combine_chunks(), best, height)


def in_pairs(first: pa.Array, second: pa.Array, height: pa.Array) -> pa.Table:
    """Returns pairs of uids, the lesser first, and their heights."""
    first_N2, second_N2 = halves(first), halves(second)
    is_equal_N = first_N2[:, 0] == second_N2[:, 0]
    swap_N = np.where(
        is_equal_N, first_N2[:, 1] > second_N2[:, 1], first_N2[:, 0] > second_N2[:, 0]
    )
    swap = pa.array(swap_N)
    columns = {UID.name: pc.if_else(swap, second, first), OTHER: pc.if_else(swap, first, second)}
    return pa.table({**columns, "height": height})


def counted(part: pa.Table) -> State:
    return {"rows": np.array(len(part))}


def in_ranges(bits: int, pairs: pa.Table) -> pa.Table:
    return pairs.append_column(RANGE, range_of(pairs[UID.name], bits))


def write(by_range: Ranges, value: Column, name: str, task: Task) -> dict[str, Any]:
    """Writes the file, sorting each range in memory; returns the number of pairs."""
    schema = pa.schema([(UID.name, UID.dtype), (OTHER, UID.dtype), (value.name, value.dtype)])
    path, written = task.worker.scratch / name, 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for pairs in by_range:
            height_N = pairs["height"].to_numpy()
            keys = [halves(pairs[uid])[:, half] for uid in (OTHER, UID.name) for half in (1, 0)]
            pairs = pairs.take(pa.array(np.lexsort((height_N, *keys))))
            values = pc.abs(pairs["height"]).cast(value.dtype)
            writer.write_table(pa.table([pairs[UID.name], pairs[OTHER], values], schema=schema))
            written += len(pairs)
    task.put_file(name, path)
    return {"pairs": written}
