"""The tree of balanced sampling: METHODS2's answer, the rule by brute force, nesting at every N."""

import numpy as np
import pytest

from clipmill.stages.select._tree import Tree


def grown(rng, leaves: int, nodes: list[int], largest: int) -> Tree:
    """A tree of random branches, some of them empty."""
    rows_K = rng.integers(0, largest + 1, leaves)
    counts = [leaves, *nodes]
    parents = [
        rng.integers(0, above, below).astype(np.int32)
        for below, above in zip(counts, nodes, strict=False)
    ]
    return Tree.over(rows_K, parents, nodes)


def brute_quotas(tree: Tree, target: int) -> dict[tuple[int, int], int]:
    """The recursive rule, said again: every x is tried, and the greater of two as near wins."""
    found = {}

    def give(height: int, node: int, target: int) -> None:
        found[height, node] = target
        if height:
            level = tree.levels[height - 1]
            children = np.flatnonzero(level.parent == node).tolist()
            sizes = [int(level.rows[child]) for child in children]
            near = [
                (abs(sum(min(x, size) for size in sizes) - target), -x)
                for x in range(max(sizes, default=0) + 1)
            ]
            x = -min(near)[1]
            for child, size in zip(children, sizes, strict=True):
                give(height - 1, child, min(x, size))

    give(len(tree.levels), 0, target)
    return found


def flat(*sizes: int) -> Tree:
    return Tree.over(np.array(sizes), [], [])


@pytest.mark.parametrize(
    ("sizes", "target", "quotas"),
    [
        ((5, 3, 1), 7, [3, 3, 1]),  # METHODS2 18.12
        ((5, 3, 1), 9, [5, 3, 1]),
        ((5, 3, 1), 8, [4, 3, 1]),
        ((5, 3, 1), 4, [2, 2, 1]),  # x = 1 is 3 and x = 2 is 5: as near, so the greater
        ((5, 3, 1), 1, [0, 0, 0]),  # 0 is nearer than 3
        ((5, 3), 1, [1, 1]),
        ((5, 3, 1), 0, [0, 0, 0]),
        ((4,), 3, [3]),
        ((0, 0), 0, [0, 0]),
    ],
)
def test_quotas_by_hand(sizes, target, quotas):
    assert flat(*sizes).quotas(target)[0].tolist() == quotas


@pytest.mark.parametrize("case", range(12))
def test_quotas_and_least_targets_are_the_recursive_rule_at_every_target(case):
    rng = np.random.default_rng(case)
    nodes = [[], [3], [5, 2], [7, 4, 2]][case % 4]
    tree = grown(rng, leaves=int(rng.integers(1, 14)), nodes=nodes, largest=[3, 9, 30][case % 3])
    rows_K = tree.levels[0].rows
    leaf_N = np.repeat(np.arange(len(rows_K)), rows_K)
    place_N = np.concatenate([np.arange(1, size + 1) for size in rows_K])
    least_N = tree.least_target(leaf_N, place_N)
    before_K = np.zeros(len(rows_K), int)
    for target in range(tree.rows + 1):
        quotas = tree.quotas(target)
        brute = brute_quotas(tree, target)
        for height, quota_C in enumerate(quotas):
            assert quota_C.tolist() == [
                brute.get((height, node), 0) for node in range(len(quota_C))
            ]
        kept_K = np.bincount(leaf_N[least_N <= target], minlength=len(rows_K))
        assert kept_K.tolist() == quotas[0].tolist(), "a row stays where its least target is met"
        assert (quotas[0] >= before_K).all(), "what a smaller target keeps, a greater one keeps"
        before_K = quotas[0]
    assert before_K.tolist() == rows_K.tolist(), "all rows, at a target of all"


def test_a_node_is_off_by_half_its_branches_at_most():
    rng = np.random.default_rng(0)
    tree = grown(rng, leaves=200, nodes=[12], largest=50)
    for target in range(0, tree.rows, 37):
        quotas = tree.quotas(target)
        for level, quota_C, target_P in zip(tree.levels, quotas, quotas[1:], strict=False):
            branches_P = np.bincount(level.parent, minlength=level.parents)
            assert (np.abs(level.sums(quota_C) - target_P) <= branches_P / 2).all()


def test_billions_of_rows_are_counted_exactly():
    tree = Tree.over(np.array([2**33, 2**33 - 1, 5]), [np.array([0, 0, 1], np.int32)], [2])
    assert tree.quotas(2**33 + 5)[0].tolist() == [2**32, 2**32, 5]
    least = tree.least_target(np.array([0, 1, 2]), np.array([2**33, 2**32, 5]))
    assert least.tolist() == [tree.rows, 2**33 + 4, 9]


def test_a_path_goes_from_below_the_root_to_the_leaf():
    parents = [np.array([1, 0, 1], np.int32), np.array([1, 0], np.int32)]
    tree = Tree.over(np.array([1, 1, 1]), parents, [2, 2])
    assert tree.paths(np.array([0, 1, 2])).tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 2]]
