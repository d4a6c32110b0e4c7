"""Whether a larger scale orders the arms of a bench as a smaller one does: Kendall's tau.

    python -m tests.benchmarks.board_order [FILE SMALLER LARGER]    of docs/measured/scores.csv

An arm's score is its mean over seeds and fine tasks, of the tasks that both scales have. Both
boards are drawn again 2,000 times: each arm's score by a normal of the seeds' variance and the
items', which are taken to be other pictures for each arm; the interval holds 95 % of the taus.
"""

from pathlib import Path

import numpy as np
import polars as pl
from scipy.stats import kendalltau

from tests.benchmarks.side_by_side import begin

DRAWS, COARSE, MEAN = 2_000, "emoji_groups", "mean of fine tasks"
SEED = 0.01  # standard deviation over seeds where an arm has one


def main(file: str, *scales: str) -> str:
    scores = pl.read_csv(Path(file)).filter(pl.col("task") != COARSE)
    parts = [scores.filter(pl.col("scale") == scale) for scale in scales]
    kinds = [part.select("task", "pictures").unique() for part in parts]
    tasks = kinds[0].join(kinds[1], on=["task", "pictures"])
    smaller, larger = (board(part, tasks) for part in parts)
    arms = smaller.join(larger, on="arm", suffix="_larger").sort("score", descending=True)
    for row in arms.iter_rows(named=True):
        print(f"{row['arm']:<16}{row['score']:6.1f}{row['score_larger']:6.1f}")
    rng = np.random.default_rng(0)
    boards = [(arms[f"score{end}"], arms[f"error{end}"]) for end in ("", "_larger")]
    tau = kendalltau(*(score for score, _ in boards)).statistic
    drawn = [rng.normal(*of_arm, (DRAWS, len(arms))) for of_arm in boards]
    taus = [kendalltau(*pair).statistic for pair in zip(*drawn, strict=True)]
    low, high = np.quantile(taus, (0.025, 0.975))
    return f"tau of {len(arms)} arms {tau:.2f} ({low:.2f} to {high:.2f})"


def board(scores: pl.DataFrame, tasks: pl.DataFrame) -> pl.DataFrame:
    """Each arm's score, in points, and its standard error; an arm of one seed has SEED's."""
    value = pl.col("value").mean()
    parts = scores.join(tasks, on=["task", "pictures"])
    whole = scores.filter(pl.col("task") == MEAN).select("arm", "seed", "value")
    items = parts.group_by("arm", "task").agg(value * (1 - value) / pl.col("pictures").first())
    items = items.group_by("arm").agg(items=pl.col("value").sum() / len(tasks) ** 2)
    seeds = pl.concat([parts.group_by("arm", "seed").agg(value), whole])
    arms = seeds.group_by("arm").agg(
        value, of_seeds=pl.col("value").var() / pl.len(), seeds=pl.len()
    )
    variance = pl.col("of_seeds").fill_null(SEED**2 / pl.col("seeds"))
    variance += pl.col("items").fill_null(pl.col("items").mean())
    arms = arms.join(items, on="arm", how="left")
    return arms.select("arm", score=100 * pl.col("value"), error=100 * variance.sqrt())


if __name__ == "__main__":
    begin(main, quick=("docs/measured/scores.csv", "nano", "micro"))
