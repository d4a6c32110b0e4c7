"""Levels above clusters: k-means of centroids by hand and by brute force, whatever the pieces."""

from functools import partial

import numpy as np
import pyarrow as pa
import pytest

from clipmill.stages.ops.vectors.matrices import from_matrix, unit_rows
from clipmill.stages.select import _tree
from clipmill.stages.select._tree import itself, moved_nodes, nearest_nodes, parents_of


def around(groups: int, each: int, spread: float, width: int = 6) -> np.ndarray:
    """Directions in groups, each group whole before the next."""
    rng = np.random.default_rng(0)
    centre_ND = np.repeat(np.eye(groups, width), each, axis=0)
    return unit_rows(centre_ND + spread * rng.standard_normal(centre_ND.shape))


def near(point_ND, node_LD):
    return nearest_nodes(
        np.asarray(node_LD, np.float32), pa.table({"vector": from_matrix(np.asarray(point_ND))})
    )


def groups_of(node_N) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(node_N == node).tolist()) for node in set(node_N.tolist())}


def test_separated_groups_are_the_nodes_and_groups_of_groups_those_above(memory_context):
    point_ND = around(groups=6, each=5, spread=0.05)
    point_ND[:15, 0] += 3  # the first three groups lie near each other, and so do the others
    point_ND[15:, 5] += 3
    point_ND = unit_rows(point_ND)
    for seed in range(4):
        low, high = parents_of(
            partial(itself, point_ND), "cosine", (6, 2), 20, memory_context(seed)
        )
        assert groups_of(high[low]) == {frozenset(range(15)), frozenset(range(15, 30))}
        assert len(groups_of(low)) == 6


@pytest.mark.parametrize(
    ("metric", "offset"), [("cosine", 0), ("cosine", 9), ("euclidean", 0), ("euclidean", 9)]
)
def test_every_point_is_of_its_nearest_node_and_nodes_are_means(metric, offset, memory_context):
    rng = np.random.default_rng(1)
    point_ND = (rng.standard_normal((300, 5)) + offset).astype(np.float16).astype(np.float32)
    point_ND = unit_rows(point_ND) if metric == "cosine" else point_ND
    ctx = memory_context()
    (node_N,) = parents_of(partial(itself, point_ND), metric, (12,), 100, ctx)
    assert int(ctx.states[-1]["moved"]) == 0, "it came to rest"
    node_LD = ctx.states[-1]["node_LD"]
    apart_NL = np.linalg.norm(point_ND[:, None].astype(float) - node_LD.astype(float), axis=2)
    assert node_N.tolist() == apart_NL.argmin(axis=1).tolist()
    for node in range(12):
        mean_D = point_ND[node_N == node].mean(axis=0, dtype=float)
        mean_D /= np.linalg.norm(mean_D) if metric == "cosine" else 1
        np.testing.assert_allclose(node_LD[node], mean_D, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_pieces_of_the_points_change_no_bit(metric, memory_context, monkeypatch):
    point_ND = around(groups=4, each=12, spread=0.4)
    point_ND[5] = point_ND[7]  # ties
    found = []
    for piece in (_tree.PART, 1, 7, 47):
        monkeypatch.setattr(_tree, "PART", piece)
        ctx = memory_context()
        parents = parents_of(partial(itself, point_ND), metric, (9, 3), 8, ctx)
        found.append((*map(np.ndarray.tobytes, parents), ctx.states[-1]["node_LD"].tobytes()))
    assert len(set(found)) == 1


def test_of_equally_near_nodes_the_first_is_taken():
    point_ND = around(groups=3, each=10, spread=0.3)
    copies_LD = np.vstack([point_ND[:2], point_ND[:2], point_ND[:1]])
    found = near(point_ND, copies_LD)
    assert set(found["node_N"].tolist()) == {0, 1}
    assert found["far_N"][:2].tolist() == [0, 0]


def test_a_node_without_points_moves_onto_the_farthest_point():
    point_ND = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 2]]
    node_LD = np.eye(3, dtype=np.float32)[[0, 0, 1]]
    found = near(point_ND, node_LD)
    assert found["node_N"].tolist() == [0, 0, 0, 2, 0]
    moved = moved_nodes(point_ND, node_LD, found, "cosine")
    assert moved["node_LD"][1].tolist() == [0, 0, 1], "the point that lay farthest"


def test_fewer_distinct_points_than_nodes_leave_some_empty(memory_context):
    point_ND = np.eye(4, dtype=np.float32)[[0, 0, 1, 1, 1, 2]]
    for metric in ("cosine", "euclidean"):
        (node_N,) = parents_of(partial(itself, point_ND), metric, (5,), 20, memory_context())
        assert len(groups_of(node_N)) == 3


def test_points_that_cancel_out_leave_their_node_where_it_is():
    point_ND = np.array([[1, 0], [-1, 0]], np.float32)
    node_LD = np.array([[0, 1]], np.float32)
    moved = moved_nodes(point_ND, node_LD, near(point_ND, node_LD), "cosine")
    assert moved["node_LD"].tolist() == [[0, 1]]
    assert int(moved["moved"]) == 0


def test_a_walk_stopped_after_any_round_ends_as_an_unbroken_one(memory_context):
    point_ND = around(groups=4, each=30, spread=0.8)
    unbroken = memory_context()
    expected = parents_of(partial(itself, point_ND), "cosine", (9,), 6, unbroken)
    assert len(unbroken.states) > 4
    for kept in range(1, len(unbroken.states)):
        resumed = memory_context()
        resumed.states = unbroken.states[:kept]
        again = parents_of(partial(itself, point_ND), "cosine", (9,), 6, resumed)
        assert again[0].tolist() == expected[0].tolist()


def test_the_seed_chooses_the_start(memory_context):
    point_ND = around(groups=2, each=60, spread=0.9)
    one, again, other = (
        parents_of(partial(itself, point_ND), "cosine", (9,), 3, memory_context(seed))[0].tolist()
        for seed in (0, 0, 1)
    )
    assert one == again != other
