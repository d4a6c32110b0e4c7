"""Splits an arm by a column: each value alone, each two, and a mixture with learnt weights.

Source: Quality not quantity (Nguyen et al. 2022) asks whether sources are better alone or mixed; a
mixture's score is predicted by Scheffé's quadratic polynomial (1958, "Experiments with mixtures"),
which the single values and the even pairs determine.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations, combinations_with_replacement

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.pipeline.bench.board import Board, trained_arms
from clipmill.pipeline.bench.pool import Runs
from clipmill.pipeline.bench.prepare import Prepared
from clipmill.pipeline.bench.spec import LEARNT, Arm, Bench, Source, unfit
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.ledger.proof.measured import halves, main_metrics, mean_of, measured
from clipmill.pipeline.ledger.proof.results import scores_of
from clipmill.pipeline.run_folder.state import RunState

MIX = "_and_"  # in the name of a pair
MOST = 6  # values: with more, pairs would be the most of it
MANY = 10_000  # values that are counted
STEPS = 10  # a weight is a multiple of 1 / STEPS


def split(bench: Bench, by: str) -> Bench:
    """Adds an arm for each value of a column, `source`, or for named ones, `source:web,books`.

    Raises RecipeError unless the bench has one arm of a run, of two to six values.
    """
    if by == bench.by:
        return bench
    where = f"--by {by}"
    wholes = [name for name, source in bench.rows.items() if source.kind == "stage"]
    if bench.hold_out:
        do = "leave one out: sources at home have no rows among strangers"
        raise RecipeError("--by and --hold-out together", where, do)
    if bench.by or len(wholes) != 1:
        found = f"split by {bench.by}" if bench.by else f"{len(wholes)} arms of runs"
        raise RecipeError(f"a bench {found}", where, "name one arm to split, and a new --out")
    column, _, named = by.partition(":")
    if not column:
        raise RecipeError("no column", where, "write --by COLUMN, or --by COLUMN:A,B")
    source = bench.rows[wholes[0]]
    counts = _counts(wholes[0], source, column)
    values = named.split(",") if named else sorted(counts)
    shown = ", ".join(f"{value} ({rows:,} rows)" for value, rows in counts.most_common(9))
    choose = f"name those to compare, --by {column}:A,B, of: {shown}"
    if not 2 <= len({*values}) <= MOST or len({*values}) < len(values):
        raise RecipeError(f"{len(values)} values; 2 to {MOST} can be compared", where, choose)
    for value in values:
        if value not in counts:
            raise RecipeError(f"no row whose {column} is '{value}'", where, choose)
        if problem := unfit(value) or (value in (*bench.rows, *bench.arms) and "it is taken"):
            raise RecipeError(f"'{value}' as an arm's name: {problem}", where, choose)
    parts = {value: replace(source, column=column, value=value) for value in values}
    pairs = {
        f"{a}{MIX}{b}": Source(kind="mix", shares={a: 0.5, b: 0.5})
        for a, b in combinations(values, 2)
    }
    if taken := pairs.keys() & {*parts, *bench.rows, *bench.arms}:
        raise RecipeError(f"'{min(taken)}' is a mixture's name and an arm's", where, choose)
    return replace(
        bench,
        by=by,
        rows=bench.rows | parts | pairs,
        arms=bench.arms | {name: Arm(rows=name) for name in (*parts, *pairs)},
    )


def _counts(arm: str, source: Source, column: str) -> Counter[str]:
    """Counts an arm's rows by the column's values; nulls are of none."""
    choice = Runs().choice(arm, source.run, source.stage, column)
    counts: Counter[str] = Counter()
    for shard in range(len(choice.rows)):
        values = choice.leaving(shard)[column].drop_null()
        try:
            found = pc.value_counts(values.cast(pa.string()))
        except pa.ArrowException:
            do = "name a column of words"
            raise RecipeError(f"{column} has values of type {values.type}", "--by", do) from None
        counts.update({entry["values"]: entry["counts"] for entry in found.to_pylist()})
        if len(counts) > MANY:
            do = "name a column of few values"
            raise RecipeError(f"{column} has more than {MANY:,} values", "--by", do)
    return counts


def with_learnt(prepared: Prepared, state: RunState) -> Bench:
    """Returns the bench with an arm of learnt weights; as it was if there is one, or no use of it.

    Weights are learnt on one half of each task's items; one value with all weight is its own arm.
    """
    bench = prepared.bench
    if not bench.by or LEARNT in bench.rows or not (scores := _half_scores(prepared, state)):
        return bench
    shares = best_shares(bench, {arm: half_2[0] for arm, half_2 in scores.items()})
    if len(shares) == 1:
        return bench
    mixture = Source(kind="mix", shares=shares)
    return replace(
        bench, rows=bench.rows | {LEARNT: mixture}, arms=bench.arms | {LEARNT: Arm(rows=LEARNT)}
    )


def best_shares(bench: Bench, score: Mapping[str, float]) -> dict[str, float]:
    """Returns the shares of the values, in tenths, whose predicted score is the highest."""
    values = [name for name, source in bench.rows.items() if source.value]
    single_V = np.array([score[value] for value in values])
    gain_VV = np.zeros((len(values), len(values)))
    for (i, a), (j, b) in combinations(enumerate(values), 2):
        gain_VV[i, j] = 4 * (score[f"{a}{MIX}{b}"] - (single_V[i] + single_V[j]) / 2)
    drawn = combinations_with_replacement(range(len(values)), STEPS)
    share_MV = np.array([np.bincount(d, minlength=len(values)) for d in drawn]) / STEPS
    predicted_M = share_MV @ single_V + np.einsum("mi,ij,mj->m", share_MV, gain_VV, share_MV)
    best_V = share_MV[predicted_M.argmax()]
    return {value: float(share) for value, share in zip(values, best_V, strict=True) if share}


def by_column(board: Board, prepared: Prepared, state: RunState) -> Board:
    """Returns the board with the arms of a bench by a column, and what its weights are worth.

    That is told on the half of the items on which neither weights nor the best arms were chosen.
    """
    bench = prepared.bench
    if not bench.by or not (scores := _half_scores(prepared, state)):
        return board
    first = {arm: half_2[0] for arm, half_2 in scores.items()}
    parts = [name for name, source in bench.rows.items() if source.value]
    pairs = [f"{a}{MIX}{b}" for a, b in combinations(parts, 2)]
    learnt = [LEARNT] if LEARNT in bench.rows else []
    shares = bench.rows[LEARNT].shares if learnt else best_shares(bench, first)
    weights = ", ".join(f"{value} {100 * share:.0f} %" for value, share in shares.items())
    best = {max(parts, key=first.__getitem__): "alone", max(pairs, key=first.__getitem__): "pair"}
    values = [f"the best {what}, {arm}, {100 * scores[arm][1]:.1f}" for arm, what in best.items()]
    values += [f"{LEARNT} {100 * scores[LEARNT][1]:.1f}" for _ in learnt]
    words = (
        f"weights learnt on half of the items: {weights}; on the other half, {', '.join(values)}"
    )
    return replace(board, by=(*parts, *pairs, *learnt), learnt=words)


def _half_scores(prepared: Prepared, state: RunState) -> dict[str, NDArray[np.float64]]:
    """Returns each arm's mean over fine tasks, else over all, on both halves of the items."""
    every = trained_arms(prepared, state)
    trials = [trial for arm in every for trial in arm.trials]
    metrics = main_metrics(measured(trials, halves))
    whole = [m for m in metrics if m.draw_SD is not None and len(m.models) == len(trials)]
    if not (tasks := [metric for metric in whole if metric.is_fine] or whole):
        return {}
    found = scores_of(mean_of(tasks), every)
    return {arm: s.draw_SD.mean(axis=0) for arm, s in found.items() if s.draw_SD is not None}
