"""Groups across partitions: long chains in few rounds, forests that lose nothing."""

import numpy as np
import pyarrow as pa
import pytest

from clipmill.metadata.schema import Column
from clipmill.stages.dedup import _linkage as linkage
from clipmill.stages.dedup._linkage import as_edges, link, thinned
from clipmill.stages.ops.tables import keeper
from tests.stages.dedup.brute import linked

HEIGHT = Column("joined_at", pa.float32(), "height", "")


def row_table(node_N: np.ndarray) -> pa.Table:
    """Rows whose keep order is their order here."""
    rows = len(node_N)
    columns = [
        pa.array([row.to_bytes(16, "big") for row in range(rows)], pa.binary(16)),
        pa.array(np.zeros(rows, np.int32)),
        pa.array(np.arange(rows, dtype=np.int32)),
        pa.array([[]] * rows, keeper.PREFERENCE.dtype),
        pa.array(node_N),
    ]
    return pa.table(columns, schema=linkage.ROW)


def grouped(ctx, memory_shards, node_N, edges: list[pa.Table], partitions: int) -> pa.Table:
    """The rows in their order."""
    rows = ctx.shuffle(memory_shards(row_table(node_N)), "node", partitions)
    shards = memory_shards(*(e.append_column("shard", pa.nulls(len(e))) for e in edges))
    met = ctx.shuffle(shards, "a", partitions)
    out = link(ctx, rows, met, equal=0, partitions=partitions, joined_at=HEIGHT)
    return pa.concat_tables(t.unify_dictionaries() for t in out).sort_by("position")


def chain(kind: str, links: int) -> np.ndarray:
    """The nodes of a chain in its order; which is the lowest of its neighbours costs rounds."""
    place_V = np.arange(links + 1, dtype=np.uint64)
    if kind == "ascending":
        return place_V + np.uint64(1)
    if kind == "zigzag":
        return np.where(place_V % 2, place_V + np.uint64(1), np.uint64(10**9) - place_V)
    return np.random.default_rng(0).permutation(place_V) * np.uint64(2**40)


@pytest.mark.parametrize("kind", ["ascending", "zigzag", "random"])
def test_a_chain_of_ten_thousand_links_is_one_group_in_twenty_rounds(
    kind, memory_shards, memory_context
):
    node_V, ctx, keys = chain(kind, 10_000), memory_context(), []
    shuffle = ctx.shuffle
    ctx.shuffle = lambda over, key, partitions: keys.append(key) or shuffle(over, key, partitions)
    # Each partition of edges sees every 16th link: none sees two in a row.
    edges = [
        as_edges(node_V[:-1][part::16], node_V[1:][part::16], np.full(625, 2, np.float32))
        for part in range(16)
    ]
    out = grouped(ctx, memory_shards, node_V, edges, partitions=16)
    assert keys.count("key") <= 20
    assert out["joined_at"].to_pylist() == [None] + [2] * 10_000
    assert set(out["duplicate_of"].to_pylist()[1:]) == {bytes(16)}


def test_random_graphs_in_pieces_are_those_of_all_pairs(memory_shards, memory_context):
    rng = np.random.default_rng(0)
    for _ in range(50):
        nodes, edges = int(rng.integers(1, 30)), int(rng.integers(0, 50))
        node_V = rng.choice(10_000, nodes, replace=False).astype(np.uint64)
        owner_N = rng.integers(0, nodes, int(rng.integers(nodes, 2 * nodes + 1)))
        owner_N[:nodes] = np.arange(nodes)  # every node has a row, some have several
        a_E, b_E = rng.integers(0, nodes, (2, edges))
        height_E = rng.integers(1, 7, edges).astype(np.float32)
        parts = np.array_split(np.arange(edges), 4)
        pieces = [as_edges(node_V[a_E[p]], node_V[b_E[p]], height_E[p]) for p in parts]
        out = grouped(
            memory_context(), memory_shards, node_V[owner_N], pieces, int(rng.integers(1, 6))
        )
        height_VV = np.full((nodes, nodes), np.inf)
        np.minimum.at(height_VV, (a_E, b_E), height_E)
        height_VV = np.minimum(height_VV, height_VV.T)
        np.fill_diagonal(height_VV, 0)
        height_NN = height_VV[owner_N][:, owner_N]
        joined, best = linked(height_NN, np.arange(len(owner_N)), 6)
        assert out["joined_at"].to_pylist() == joined
        uids = [None if row is None else row.to_bytes(16, "big") for row in best]
        assert out["duplicate_of"].to_pylist() == uids


def test_a_forest_has_one_edge_a_node_fewer_and_points_at_the_lowest_node():
    a, b = np.array([5, 5, 9, 9, 20], np.uint64), np.array([7, 9, 7, 5, 21], np.uint64)
    forest = thinned(as_edges(a, b, np.array([1, 3, 2, 3, 1], np.float32))).sort_by("x").to_pydict()
    assert forest["x"] == [7, 9, 21]
    assert forest["y"] == [5, 5, 20]
    assert sorted(forest["height"]) == [1, 1, 2]
