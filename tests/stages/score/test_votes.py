"""Votes: accuracies and probabilities of known rules, and what cannot be told."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.dataset import Inputs
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.score.votes import Votes

RULES = ("a", "b", "c")


@pytest.fixture
def scored(memory_context, memory_shards):
    """What the stage stores of these tables, and its summary."""

    def run(stage: Votes, *tables: pa.Table) -> tuple[pa.Table, dict]:
        ctx = memory_context()
        stage.run(Inputs(rows=memory_shards(*tables)), ctx)
        whole = pa.concat_tables(table.unify_dictionaries() for table in ctx.stored)
        return whole, json.loads((ctx.out / "votes.json").read_text())

    return run


def table(vote_NJ: list) -> pa.Table:
    uids = [(1 + row).to_bytes(16, "big") for row in range(len(vote_NJ))]
    columns = {name: pa.array([v[j] for v in vote_NJ], pa.bool_()) for j, name in enumerate(RULES)}
    return pa.table({"uid": pa.array(uids, pa.binary(16)), **columns})


def in_proportion(*accuracies: float, rows: int = 2_000) -> list:
    """Votes on good and bad rows in equal parts, each pattern as often as it is likely."""
    votes = []
    for truth, *right in itertools.product((True, False), repeat=1 + len(accuracies)):
        chances = [a if r else 1 - a for a, r in zip(accuracies, right, strict=True)]
        votes += [[truth == r for r in right]] * round(rows / 2 * np.prod(chances))
    return votes


@pytest.mark.parametrize("accuracies", [(0.9, 0.6, 0.6), (0.9, 0.8, 0.7)])
def test_accuracies_of_three_voters_are_found_without_truth(accuracies, scored):
    _, about = scored(Votes(rules=RULES), table(in_proportion(*accuracies)))
    assert [about[name]["accuracy"] for name in RULES] == pytest.approx(accuracies, abs=0.03)
    assert [about[name]["votes"] for name in RULES] == [1, 1, 1]


@pytest.mark.parametrize("balance", [0.5, 0.2])
def test_a_probability_is_that_of_bayes_and_a_rule_may_abstain(balance, scored):
    votes = in_proportion(0.9, 0.8, 0.7)
    votes += [[True, None, False]] * 5 + [[None] * 3]
    out, about = scored(Votes(rules=RULES, balance=balance), table(votes))
    accuracy = [about[name]["accuracy"] for name in RULES]
    for vote, score in zip(votes, out["votes_score"].to_pylist(), strict=True):
        good, bad = balance, 1 - balance
        for says, a in zip(vote, accuracy, strict=True):
            good *= 1 if says is None else a if says else 1 - a
            bad *= 1 if says is None else 1 - a if says else a
        expected = None if vote == [None] * 3 else pytest.approx(good / (good + bad), rel=1e-5)
        assert score == expected
    assert out["reason"].to_pylist() == [None] * (len(votes) - 1) + ["no_votes"]


def test_shards_and_order_change_nothing(scored):
    stage, given = Votes(rules=RULES), table(in_proportion(0.9, 0.7, 0.7, rows=400))
    out, about = scored(stage, given)
    turned, again = scored(stage, given.slice(7), given.slice(0, 7))
    assert again == about
    assert turned.sort_by("uid")["votes_score"].equals(out.sort_by("uid")["votes_score"])


def test_rules_that_tell_nothing_apart_are_refused(scored):
    with pytest.raises(StageError, match="'b' never says no"):
        scored(Votes(rules=RULES), table([[True, True, False], [False, True, True]]))
    with pytest.raises(StageError, match="column 'b' holds double"):
        Votes(rules=RULES).check({"a": pa.bool_(), "b": pa.float64(), "c": pa.bool_()})
    with pytest.raises(RecipeError, match="a rule stands twice"):
        Votes(rules=("a", "b", "a"))


def test_a_pool_of_no_rows_has_no_rule_that_tells_nothing_apart(memory_context, memory_shards):
    ctx = memory_context()
    Votes(rules=RULES).run(Inputs(rows=memory_shards(table([]))), ctx)
    assert sum(map(len, ctx.stored)) == 0
