"""What scores of a run tell of its pool's planted faults, and what the best fifth by each holds.

    python -m tests.benchmarks.scores POOL RUN [SELECT] STAGE.COLUMN…

AUC of good captions above swapped ones, above those swapped within their group, and above all
faulty rows; the share of good rows and of swapped ones in the best fifth of the pool. With SELECT
the rows that it keeps and those that it drops have a table each. The interval of the first AUC, and
of its difference to that of the first score, is 1.96 deviations over 200 pools whose drawings are
drawn again. Rows without one of the scores, and trusted ones, are left out.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from clipmill.pipeline.ledger.rows.stored import stored
from clipmill.pipeline.run_folder.state import latest
from tests.benchmarks.pools import auc
from tests.benchmarks.side_by_side import NeedError, begin

DRAWS = 200


def main(*words: str) -> str:
    if len(words) < 3:
        raise NeedError("POOL RUN [SELECT] STAGE.COLUMN…: a pool with its truth, and a run of it")
    pool, run, *names = words
    split = names.pop(0) if "." not in names[0] else ""
    truth = pl.read_parquet(f"{pool}/truth.parquet").with_columns(pl.col("uid").str.decode("hex"))
    state = latest(run)
    columns = {name: (name.split(".")[0], name.split(".")[1]) for name in names}
    columns |= {"keep": (split, "keep")} if split else {}
    root = state.plan.stages[columns[names[0]][0]].root
    shards = stored(state, root, columns)
    parts = [pl.DataFrame(shards.table(i).select(["uid", *columns])) for i in range(len(shards))]
    rows = pl.concat(parts).join(truth, on="uid").drop_nulls(names)
    if not split:
        return table("", rows, names)
    here = table(f"kept by '{split}'", rows.filter("keep"), names)
    return f"{here}; strangers: {table(f'dropped by {split}', rows.filter(~pl.col('keep')), names)}"


def table(title: str, rows: pl.DataFrame, names: list[str]) -> str:
    """Prints a line a score; returns the first AUC of each."""
    good = rows["is_good"].to_numpy()
    swapped = rows["text_issue"].eq_missing("swapped").to_numpy()
    own = swapped & rows["swapped_in_group"].fill_null(False).to_numpy()
    _, drawing_N = np.unique(rows["dup_cluster"].to_numpy(), return_inverse=True)
    rng, many = np.random.default_rng(0), drawing_N.max() + 1
    draws = (np.bincount(rng.integers(0, many, many), minlength=many) for _ in range(DRAWS))
    times_RN = np.stack([times[drawing_N] for times in draws])
    print(f"{title}: {good.sum():,} good rows, {swapped.sum():,} swapped")
    print(f"{'score':<28}{'swapped':>15}{'- first':>16}{'own group':>11}{'faulty':>8}", end="")
    print(f"{'good in best fifth':>20}{'swapped':>9}")
    found, first_R = [], np.zeros(0)
    for name in names:
        value_N = rows[name].to_numpy()
        whole = auc(value_N[good], value_N[swapped])
        drawn_R = drawn(value_N, good, swapped, times_RN)
        first_R, first = (first_R, found[0][1]) if found else (drawn_R, whole)
        best = np.argsort(-value_N, kind="stable")[: len(rows) // 5]
        apart = f"{whole - first:+.3f} ± {1.96 * (drawn_R - first_R).std():.3f}" if found else ""
        others = [auc(value_N[good], value_N[bad]) for bad in (own, ~good)]
        shares = good[best], swapped[best]
        told = f"{whole:.3f} ± {1.96 * drawn_R.std():.3f}"
        print(f"{name:<28}{told:>15}{apart:>16}{others[0]:>11.3f}{others[1]:>8.3f}", end="")
        print(f"{shares[0].mean():>20.1%}{shares[1].mean():>9.1%}")
        found.append((name, whole))
    return ", ".join(f"{name} {value:.3f}" for name, value in found)


def drawn(
    value_N: NDArray, good_N: NDArray, bad_N: NDArray, times_RN: NDArray[np.int64]
) -> NDArray[np.float64]:
    """AUC of good rows above bad ones, each counted so many times; ties count half."""
    order = np.argsort(value_N)
    starts = np.flatnonzero(np.append(True, np.diff(value_N[order]) != 0))
    good_RU, bad_RU = (
        np.add.reduceat(times_RN[:, order] * of_N[order], starts, axis=1)
        for of_N in (good_N, bad_N)
    )
    below_RU = np.cumsum(bad_RU, axis=1) - bad_RU / 2
    return (good_RU * below_RU).sum(axis=1) / good_RU.sum(axis=1) / bad_RU.sum(axis=1)


if __name__ == "__main__":
    begin(main)
