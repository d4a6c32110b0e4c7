"""How near the quotas of a large tree come to their targets, and what they cost.

    python -m tests.benchmarks.prune [full | CLUSTERS]        100,000; full: a million

Clusters of sizes by Pareto's law, about 1,300 rows each, in three levels above them.
"""

from itertools import pairwise
from time import process_time

import numpy as np

from clipmill.stages.select._tree import Tree
from tests.benchmarks.side_by_side import begin


def main(clusters: int) -> str:
    rng = np.random.default_rng(0)
    counts = [clusters, clusters // 20, clusters // 200, clusters // 2000]
    rows_K = (rng.pareto(1.2, clusters) * 300).astype(np.int64) + 1
    parents = [rng.integers(0, b, a).astype(np.int32) for a, b in pairwise(counts)]
    tree = Tree.over(rows_K, parents, counts[1:])
    for share in (0.5, 0.1, 0.01, 0.001):
        begun = process_time()
        off = tree.quotas(int(share * tree.rows))[0].sum() / int(share * tree.rows) - 1
        spent_s = process_time() - begun
        print(f"{share:6} of {tree.rows:,} rows: {off:+.4%} kept{spent_s:8.2f} s")
    leaf_N = np.sort(rng.integers(0, clusters, 250_000))
    begun = process_time()
    tree.least_target(leaf_N, rng.integers(1, rows_K[leaf_N] + 1))
    print(f"ranks of a partition of 250,000 rows {process_time() - begun:8.2f} s")
    return f"{off:+.1%} rows at a thousandth of {tree.rows:,} rows"


if __name__ == "__main__":
    begin(main, quick=(100_000,), full=(1_000_000,))
