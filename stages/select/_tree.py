"""A tree over clusters, and how many rows of each a target takes: Vo et al.'s balanced sampling.

From the top, a node with target T gives each child min(x, its rows), with the whole x that brings
their sum nearest to T; of two as near, the greater. Let F(x) be that sum. F rises with x, so x
reaches r just when T >= (F(r - 1) + F(r)) / 2: a child's quota is a step function of T that never
falls, hence so is a leaf's, of the target of the whole tree. The least target at which a row
enters is that formula applied level by level, from the row's place in its leaf up.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.pipeline.dataset import Task
from clipmill.stages.ops.outputs import put_table, put_text

# Shapes: C children and P parents of a level, K leaves, N rows.

Whole = NDArray[np.int64]
TABLE, SUMMARY = "tree.parquet", "tree.json"


@dataclass(frozen=True)
class Level:
    """Nodes and the parents above them."""

    parent: NDArray[np.int32]  # (C,)
    rows: Whole  # (C,)
    parents: int  # P

    @cached_property
    def _by_size(self) -> tuple[Whole, Whole, Whole]:
        """Children by parent, then by rows: both as one number, rows of all before, and where each
        parent's begin."""
        order_C = np.lexsort((self.rows, self.parent))
        parent_C = self.parent[order_C].astype(np.int64)
        key_C = parent_C * self._stride + self.rows[order_C]
        before = np.append(0, np.cumsum(self.rows[order_C]))
        return key_C, before, np.searchsorted(parent_C, np.arange(self.parents + 1))

    @property
    def _stride(self) -> int:
        return int(self.rows.max(initial=0)) + 1

    def taken(self, parent_N: Whole, x_N: Whole) -> Whole:
        """(N,) the rows that x of each child are: the sum of min(x, its rows) below a parent.

        x is at most the rows of the largest child of the level.
        """
        key_C, before, begin = self._by_size
        smaller_N = np.searchsorted(key_C, parent_N * self._stride + x_N)
        whole_N = before[smaller_N] - before[begin[parent_N]]
        return whole_N + (begin[parent_N + 1] - smaller_N) * x_N

    def least_target(self, child_N: Whole, wanted_N: Whole) -> Whole:
        """(N,) the least target of each child's parent that gives the child so many, 1 or more."""
        parent_N = self.parent[child_N].astype(np.int64)
        sums_N = self.taken(parent_N, wanted_N - 1) + self.taken(parent_N, wanted_N)
        return (sums_N + 1) // 2

    def quotas(self, target_P: Whole) -> Whole:
        """(C,) what each child gets of its parent's target, which is at most the parent's rows."""
        parent_P = np.arange(self.parents)
        low_P = np.zeros(self.parents, np.int64)  # reached
        high_P = np.zeros(self.parents, np.int64)  # the largest child's rows
        np.maximum.at(high_P, self.parent, self.rows)
        while (low_P < high_P).any():
            middle_P = (low_P + high_P + 1) // 2
            sums_P = self.taken(parent_P, middle_P - 1) + self.taken(parent_P, middle_P)
            reached_P = (sums_P <= 2 * target_P) & (low_P < high_P)
            high_P = np.where(reached_P | (low_P == high_P), high_P, middle_P - 1)
            low_P = np.where(reached_P, middle_P, low_P)
        return np.minimum(low_P[self.parent], self.rows)

    def sums(self, value_C: Whole) -> Whole:
        """(P,) the sum of the children's values."""
        sum_P = np.zeros(self.parents, np.int64)
        np.add.at(sum_P, self.parent, value_C)
        return sum_P


@dataclass(frozen=True)
class Tree:
    """Levels from the leaves up; the last has one parent, the root."""

    levels: tuple[Level, ...]

    @classmethod
    def over(
        cls, rows_K: NDArray, parents: Sequence[NDArray[np.int32]], nodes: Sequence[int]
    ) -> Self:
        """The tree of leaves with so many rows.

        `nodes` are the sizes of the levels above the leaves, and `parents` the node of each leaf,
        then of each node of the level above, and so on; the root is above the last.
        """
        levels: list[Level] = []
        rows_C = rows_K
        for parent_C, above in zip(
            [*parents, np.zeros([len(rows_K), *nodes][-1], np.int32)], [*nodes, 1], strict=True
        ):
            levels.append(Level(parent_C, rows_C, above))
            rows_C = levels[-1].sums(rows_C)
        return cls(tuple(levels))

    @property
    def rows(self) -> int:
        return int(self.levels[0].rows.sum())

    def least_target(self, leaf_N: Whole, place_N: Whole) -> Whole:
        """(N,) the least target of the tree that takes a row by its place in its leaf, from 1."""
        node_N, target_N = leaf_N, place_N
        for level in self.levels:
            target_N = level.least_target(node_N, target_N)
            node_N = level.parent[node_N].astype(np.int64)
        return target_N

    def quotas(self, target: int) -> list[Whole]:
        """The quota of every node, by level from the leaves up, the root's target last."""
        found = [np.array([target])]
        for level in reversed(self.levels):
            found.append(level.quotas(found[-1]))
        return found[::-1]

    def paths(self, leaf_N: Whole) -> NDArray[np.int32]:
        """(N, levels) each leaf's nodes from below the root down to the leaf itself."""
        path: list[NDArray] = [leaf_N]
        for level in self.levels[:-1]:
            path.append(level.parent[path[-1]])
        return np.stack(path[::-1], axis=1).astype(np.int32)


def put_tree(tree: Tree, target: int, task: Task) -> dict[str, int]:
    """out/tree.parquet: every node. out/tree.json: what was asked and kept."""
    quotas = tree.quotas(target)
    parents: list[pa.Array] = [pa.array(level.parent, pa.int32()) for level in tree.levels]
    rows = [*(level.rows for level in tree.levels), np.array([tree.rows])]
    kept = [quotas[0]]
    for level in tree.levels:
        kept.append(level.sums(kept[-1]))
    nodes = [
        pa.table(
            {
                "level": pa.array(np.full(len(rows_C), height), pa.int32()),
                "node": pa.array(np.arange(len(rows_C)), pa.int32()),
                "parent": parent,
                "rows": pa.array(rows_C, pa.int64()),
                "quota": pa.array(quota_C, pa.int64()),
                "kept": pa.array(kept_C, pa.int64()),
            }
        )
        for height, (parent, rows_C, quota_C, kept_C) in enumerate(
            zip([*parents, pa.nulls(1, pa.int32())], rows, quotas, kept, strict=True)
        )
    ]
    told = {"rows": tree.rows, "asked": target, "kept": int(kept[-1][0])}
    put_table(TABLE, pa.concat_tables(nodes), task)
    put_text(SUMMARY, json.dumps(told), task)
    return told
