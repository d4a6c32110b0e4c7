"""What scores of a run tell of its pool's planted faults, and what the best fifth by each holds.

    python -m tests.benchmarks.scores POOL RUN STAGE.COLUMN…

AUC of good captions above swapped ones, and above all faulty rows; the share of good rows and of
swapped ones in the best fifth of the pool. Rows without a score, and trusted ones, are left out.
"""

import numpy as np
import polars as pl
from scipy.stats import rankdata

from clipmill.pipeline.ledger.rows.stored import stored
from clipmill.pipeline.run_folder.state import latest
from tests.benchmarks.side_by_side import NeedError, begin


def auc(good: pl.Series, bad: pl.Series) -> float:
    """Share of pairs in which the good one is above, ties counting half."""
    rank = rankdata(np.concatenate([good, bad]))[: len(good)].sum()
    return (rank - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad))


def main(*words: str) -> str:
    if len(words) < 3:
        raise NeedError("POOL RUN STAGE.COLUMN…: a pool with its truth, and a run of it")
    pool, run, *names = words
    truth = pl.read_parquet(f"{pool}/truth.parquet").with_columns(pl.col("uid").str.decode("hex"))
    state, found = latest(run), []
    print(f"{'score':<32}{'swapped':>8}{'faulty':>8}{'good in best fifth':>20}{'swapped':>9}")
    for name in names:
        stage, column = name.split(".")
        shards = stored(state, state.plan.stages[stage].root, {"score": (stage, column)})
        parts = [pl.DataFrame(shards.table(i).select(["uid", "score"])) for i in range(len(shards))]
        rows = pl.concat(parts).join(truth, on="uid").drop_nulls("score")
        good, swapped = pl.col("is_good"), pl.col("text_issue").eq_missing("swapped")
        above, below = (rows.filter(is_so)["score"] for is_so in (good, swapped))
        faulty = rows.filter(~good)["score"]
        best = rows.top_k(len(truth) // 5, by="score")
        figures = auc(above, below), auc(above, faulty)
        shares = best["is_good"].mean(), best["text_issue"].eq_missing("swapped").mean()
        print(f"{name:<32}{figures[0]:>8.3f}{figures[1]:>8.3f}{shares[0]:>20.1%}{shares[1]:>9.1%}")
        found.append(f"{name} {figures[0]:.3f}")
    return ", ".join(found)


if __name__ == "__main__":
    begin(main)
