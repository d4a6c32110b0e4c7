"""Single linkage across partitions: the height at which each row's group gets a better row.

Edges join groups from the least height up. A minimum spanning forest of them connects the same
rows below each height: edges are thinned to one wherever they meet, and only forests are shuffled.
"""

from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import DUPLICATE_OF, POSITION, SHARD, UID, Column
from clipmill.pipeline.dataset import Context, Shards, State
from clipmill.stages.ops.compiled import compiled
from clipmill.stages.ops.tables.combined import Concatenated, Zipped
from clipmill.stages.ops.tables.keeper import PREFERENCE, best_first
from clipmill.stages.ops.tables.rows import added, with_reason

# Shapes: N rows, V nodes (distinct values), E edges or pointers between them, T answers.

NODE = Column("node", pa.uint64(), "64 bits", "What a row is compared by; equal rows are one node.")
ROW = pa.schema([(c.name, c.dtype) for c in (UID, SHARD, POSITION, PREFERENCE, NODE)])
EDGE = pa.schema([("a", pa.uint64()), ("b", pa.uint64()), ("height", pa.float32())])
# An edge and a pointer to its group: x points at a lower node y of the same group.
POINTER = pa.schema([("x", pa.uint64()), ("y", pa.uint64()), *EDGE])
MEETING = pa.schema([("key", pa.uint64()), *POINTER])
LABEL = "label"  # the lowest node of a group
GROUPED = pa.schema([(LABEL, pa.uint64()), *ROW, *EDGE])  # rows of groups, and their edges


def link(
    ctx: Context, rows: Shards, edges: Shards, *, equal: float, partitions: int, joined_at: Column
) -> Concatenated:
    """Returns every row, in no order: joined_at (the absolute height, or null) and duplicate_of.

    `rows` have the columns of ROW and are shuffled by node; `edges` have those of EDGE, are
    shuffled by a, and dropped here. A lower height is nearer; `equal`, below all of them, is the
    height between rows of one node.
    Memory is bounded by a partition, and in the end by the largest group, whose rows and one edge
    per node meet in one place. Storage holds one round.
    """
    pointers = ctx.shuffle(ctx.map_shards(thinned, edges), "x", partitions)
    ctx.drop(edges)
    is_settled = False
    while not is_settled:
        # Each round has its own journalled calls: a killed stage goes on in its round.
        before = pointers
        meeting = ctx.shuffle(ctx.map_shards(contracted, before), "key", partitions)
        pointers = ctx.shuffle(ctx.map_shards(jumped, meeting), "x", partitions)
        is_settled = not ctx.reduce(unsettled, pointers, added)["unsettled"]
        ctx.drop(before)
        ctx.drop(meeting)
    labels = ctx.shuffle(ctx.map_shards(labels_of, pointers), NODE.name, partitions)
    grouped = Zipped(partial(labelled, True), (rows, labels))
    groups = ctx.shuffle(
        Concatenated((grouped, ctx.map_shards(labelled_edges, pointers))), LABEL, partitions
    )
    ctx.drop(pointers)
    alone = Zipped(partial(settled_alone, equal, joined_at), (rows, labels))
    return Concatenated((alone, ctx.map_shards(partial(settled, equal, joined_at), groups)))


def as_edges(
    a_E: NDArray[np.uint64], b_E: NDArray[np.uint64], height_E: NDArray[np.float32]
) -> pa.Table:
    columns = [pa.array(c, f.type) for c, f in zip((a_E, b_E, height_E), EDGE, strict=True)]
    return pa.table(columns, schema=EDGE)


def forest(edges: pa.Table) -> pa.Table:
    """Returns a minimum spanning forest of the edges."""
    return thinned(edges).select(EDGE.names)


def thinned(edges: pa.Table) -> pa.Table:
    """Returns a minimum spanning forest, each edge with a node and its tree's lowest node."""
    node_V, a_E, b_E = numbered(edges["a"], edges["b"])
    edge_V, root_V = fall(a_E, b_E, edges["height"].to_numpy(), len(node_V))
    fallen = np.flatnonzero(edge_V >= 0)
    kept = edges.select(EDGE.names).take(pa.array(edge_V[fallen]))
    columns = [pa.array(node_V[fallen]), pa.array(node_V[root_V[fallen]]), *kept.columns]
    return pa.table(columns, schema=POINTER)


def contracted(pointers: pa.Table) -> pa.Table:
    """Returns pointers led to the lowest node of their group in this partition, each filed twice.

    Under y the pointer asks where y points; under x, without an edge, it answers where x points.
    """
    node_V, x_E, y_E = numbered(pointers["x"], pointers["y"])
    edge_V, root_V = fall(x_E, y_E, np.zeros(len(x_E), np.float32), len(node_V))
    fallen = np.flatnonzero(edge_V >= 0)
    x_E[edge_V[fallen]] = fallen  # a pointer of the forest starts at the one node that falls by it
    x, y = pa.array(node_V[x_E]), pa.array(node_V[root_V[x_E]])
    queries = pa.table([y, x, y, *pointers.select(EDGE.names).columns], schema=MEETING)
    nothing = [pa.nulls(len(fallen), field.type) for field in EDGE]
    x, y = pa.array(node_V[fallen]), pa.array(node_V[root_V[fallen]])
    answers = pa.table([x, x, y, *nothing], schema=MEETING)
    return pa.concat_tables([queries, answers]).combine_chunks()


def jumped(meeting: pa.Table) -> pa.Table:
    """Returns pointers led to where y points, the lowest if several; and whether each moved."""
    is_answer = pc.is_null(meeting["height"])
    answers, queries = meeting.filter(is_answer), meeting.filter(pc.invert(is_answer))
    x_T, to_T, y_E = answers["x"].to_numpy(), answers["y"].to_numpy(), queries["y"].to_numpy()
    order_T = np.lexsort((to_T, x_T))
    node_V, first_V = np.unique(x_T[order_T], return_index=True)
    place_E, moves_E = places_in(node_V, y_E)
    y_E = y_E.copy()
    y_E[moves_E] = to_T[order_T[first_V[place_E[moves_E]]]]
    columns = [queries["x"], pa.array(y_E), *queries.select(EDGE.names).columns, pa.array(moves_E)]
    return pa.table(columns, [*POINTER.names, "moved"]).combine_chunks()


def unsettled(pointers: pa.Table) -> State:
    """Counts pointers that moved, or would move in their partition; 0 when the groups are final."""
    node_V, x_E, y_E = numbered(pointers["x"], pointers["y"])
    _, root_V = fall(x_E, y_E, np.zeros(len(x_E), np.float32), len(node_V))
    changes_E = (root_V[x_E] != y_E) | pointers["moved"].to_numpy()
    return {"unsettled": np.array(np.count_nonzero(changes_E))}


def labels_of(pointers: pa.Table) -> pa.Table:
    """Returns the label of every node of a group; a label may come from several partitions."""
    x_E, y_E = pointers["x"].to_numpy(), pointers["y"].to_numpy()
    root_V = np.unique(y_E)
    node, label = np.concatenate([x_E, root_V]), np.concatenate([y_E, root_V])
    return pa.table({NODE.name: pa.array(node), LABEL: pa.array(label)})


def labelled(has_label: bool, rows: pa.Table, labels: pa.Table) -> pa.Table:
    """Returns the rows with a label, or the rows without one, in the columns of GROUPED."""
    node_V, first_V = np.unique(labels[NODE.name].to_numpy(), return_index=True)
    place_N, known_N = places_in(node_V, rows[NODE.name].to_numpy())
    assert len(np.unique(place_N[known_N])) == len(node_V), "equal nodes met in other partitions"
    chosen = pa.array(known_N if has_label else ~known_N)
    label = labels[LABEL].take(pa.array(first_V)).take(pa.array(place_N, mask=~known_N))
    members = rows.select(ROW.names).append_column(LABEL, label).filter(chosen)
    return _padded(members)


def labelled_edges(pointers: pa.Table) -> pa.Table:
    """Returns the edges with the label of their group, in the columns of GROUPED."""
    edges = pointers.select([*EDGE.names, "y"]).rename_columns([*EDGE.names, LABEL])
    return _padded(edges)


def settled_alone(equal: float, joined_at: Column, rows: pa.Table, labels: pa.Table) -> pa.Table:
    """Returns joined_at and duplicate_of of the rows of nodes without an edge."""
    return settled(equal, joined_at, labelled(False, rows, labels))


def settled(equal: float, joined_at: Column, members: pa.Table) -> pa.Table:
    """Returns joined_at and duplicate_of of every row of whole groups."""
    is_edge = pc.is_valid(members["height"])
    edges, rows = members.filter(is_edge), members.filter(pc.invert(is_edge))
    rows = rows.take(pa.array(best_first(rows)))
    uid = rows[UID.name].combine_chunks()
    # The best row of each node stands for it; nodes are numbered from the best on.
    node_V, first_V, node_N = np.unique(
        rows[NODE.name].to_numpy(), return_index=True, return_inverse=True
    )
    best_V = np.sort(first_V)
    number_V = np.searchsorted(best_V, first_V)
    a_E, b_E = (number_V[np.searchsorted(node_V, edges[end].to_numpy())] for end in ("a", "b"))
    edge_V, root_V = fall(a_E, b_E, edges["height"].to_numpy(), len(node_V))
    height_V = np.full(len(node_V), np.nan, np.float32)
    height_V[edge_V >= 0] = edges["height"].to_numpy()[edge_V[edge_V >= 0]]
    node_N = number_V[node_N]
    is_best_N = best_V[node_N] == np.arange(len(rows))
    height_N = np.where(is_best_N, height_V[node_N], np.float32(equal))
    never = np.isnan(height_N)
    keeper = uid.take(pa.array(best_V[root_V[node_N]], mask=never))
    height = pa.array(np.abs(height_N), mask=never).cast(joined_at.dtype)
    made = {joined_at.name: height, DUPLICATE_OF.name: keeper}
    return with_reason(rows, made, pa.nulls(len(rows), pa.string()))


def unlinked(shard: pa.Table, joined_at: Column, reason: pa.ChunkedArray | pa.Array) -> pa.Table:
    """Returns the rows that have a reason, with null for both values."""
    made = {c.name: pa.nulls(len(shard), c.dtype) for c in (joined_at, DUPLICATE_OF)}
    return with_reason(shard, made, reason).filter(reason.is_valid())


def numbered(
    a: pa.ChunkedArray, b: pa.ChunkedArray
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Returns (V,) the nodes of edges, ascending, and (E,) the number of each first and second."""
    both = np.concatenate([a.to_numpy(), b.to_numpy()])
    node_V, number = np.unique(both, return_inverse=True)
    return node_V, number[: len(a)], number[len(a) :]


def places_in(
    node_V: NDArray[np.uint64], value_N: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Returns (N,) each value's place among ascending nodes, and (N,) whether it is there."""
    if not len(node_V):
        return np.zeros(len(value_N), np.int64), np.zeros(len(value_N), bool)
    place_N = np.minimum(np.searchsorted(node_V, value_N), len(node_V) - 1)
    return place_N, node_V[place_N] == value_N


def _padded(table: pa.Table) -> pa.Table:
    """Returns the table in the columns of GROUPED; missing columns are null."""
    columns = [
        table[f.name] if f.name in table.column_names else pa.nulls(len(table), f.type)
        for f in GROUPED
    ]
    return pa.table(columns, schema=GROUPED)


def fall(
    a_E: NDArray[np.int64], b_E: NDArray[np.int64], height_E: NDArray[np.float32], nodes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (V,) the edge by which each node falls, or -1; (V,) the root of its group at the end.

    Edges join groups from the least height up. The lowest node of a group is its root; of two that
    join, the higher root falls. These edges are a minimum spanning forest, one for each such node.
    """
    order_E = np.argsort(height_E, kind="stable")
    edge_V, root_V = _fall(a_E[order_E], b_E[order_E], nodes)
    return np.where(edge_V < 0, -1, order_E[edge_V]) if len(order_E) else edge_V, root_V


@compiled()
def _fall(a_E, b_E, nodes):
    edge_V = np.full(nodes, -1, np.int64)
    root_V = np.arange(nodes)
    for edge in range(len(a_E)):
        a, b = _root(root_V, a_E[edge]), _root(root_V, b_E[edge])
        if a != b:
            winner, loser = min(a, b), max(a, b)
            root_V[loser] = winner
            edge_V[loser] = edge
    for node in range(nodes):
        root_V[node] = _root(root_V, node)
    return edge_V, root_V


@compiled()
def _root(root_V, node):
    while root_V[node] != node:
        root_V[node] = root_V[root_V[node]]  # halves the path for later calls
        node = root_V[node]
    return node
