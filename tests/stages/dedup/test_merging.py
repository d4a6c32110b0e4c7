"""fall: who falls to whom at which height, by hand and against a plain loop over groups."""

import numpy as np

from clipmill.stages.dedup._linkage import fall


def plain(a_E, b_E, height_E, nodes: int) -> tuple[list, list]:
    """The height at which each node first shares a group with a lower one; the groups' lowest."""
    heights: list = [None] * nodes
    group = [{node} for node in range(nodes)]
    for height in np.unique(height_E).tolist():
        for a, b, at in zip(a_E, b_E, height_E, strict=True):
            if at <= height and group[a] is not group[b]:
                group[a] |= group[b]
                for node in group[b]:
                    group[node] = group[a]
        for node in range(nodes):
            if min(group[node]) < node and heights[node] is None:
                heights[node] = height
    return heights, [min(members) for members in group]


def test_the_worse_group_falls_by_the_edge_that_joins_it():
    # 3 joins 2 at 1, 2 and 3 join 0 at 5 over 1, which joined it at 4.
    a, b, height = [3, 2, 1, 3], [2, 1, 0, 2], [1, 5, 4, 9]
    edge, root = fall(np.array(a), np.array(b), np.array(height, np.float32), 5)
    assert edge.tolist() == [-1, 2, 1, 0, -1]
    assert root.tolist() == [0, 0, 0, 0, 4]


def test_heights_and_roots_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    for _ in range(500):
        nodes, edges = int(rng.integers(1, 15)), int(rng.integers(0, 25))
        a_E, b_E = rng.integers(0, nodes, (2, edges))
        height_E = rng.integers(0, 6, edges).astype(np.float32)
        edge_V, root_V = fall(a_E, b_E, height_E, nodes)
        heights, roots = plain(a_E.tolist(), b_E.tolist(), height_E.tolist(), nodes)
        assert [None if e < 0 else float(height_E[e]) for e in edge_V] == heights
        assert root_V.tolist() == roots


def test_the_named_edges_alone_give_the_same_heights():
    rng = np.random.default_rng(1)
    for _ in range(300):
        nodes = int(rng.integers(2, 15))
        a_E, b_E = rng.integers(0, nodes, (2, 30))
        height_E = rng.integers(0, 6, 30).astype(np.float32)
        edge_V, root_V = fall(a_E, b_E, height_E, nodes)
        kept = edge_V[edge_V >= 0]
        assert len(set(kept.tolist())) == len(kept)
        again_V, roots_V = fall(a_E[kept], b_E[kept], height_E[kept], nodes)
        assert roots_V.tolist() == root_V.tolist()
        fallen = edge_V >= 0
        assert (again_V >= 0).tolist() == fallen.tolist()
        assert (height_E[kept][again_V[fallen]] == height_E[edge_V[fallen]]).all()
