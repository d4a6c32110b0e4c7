"""How rules, numbers and groups go together, against a loop over the rows."""

from collections import Counter
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.ledger.rows.stored import stored
from clipmill.pipeline.ledger.selection import relations as relations_
from clipmill.pipeline.ledger.selection.funnel import funnel
from clipmill.pipeline.ledger.selection.relations import (
    QUANTILES,
    Moments,
    RelationCounts,
    RuleCounts,
    quantiles,
)
from clipmill.pipeline.ledger.selection.rules import rules
from clipmill.pipeline.ledger.selection.scores import ScoreColumn
from clipmill.pipeline.ledger.selection.survey import survey
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.stages.select._sql import as_frame, conjuncts, truth
from tests import numbered
from tests.drawn import ROWS


def test_a_select_read_by_two_names_is_asked_once_and_the_uid_is_no_rule(tmp_path):
    numbered.write_pool(tmp_path)
    stages = """
pool:  {uses: ingest.url_list, path: none, extra: {a: int64}, shard_rows: 7}
first: {uses: select.where, from: pool, where: a > 3}
last:  {uses: select.where, from: first, where: uid IS NOT NULL AND first.keep AND a < 9}
"""
    found = rules(numbered.run(tmp_path, stages), "last", [])
    assert [rule.text for rule in found] == ["a > 3", "first.keep", "a < 9"]


@pytest.fixture(scope="module")
def found(state):
    return survey(state, "subset").relations


@pytest.fixture(scope="module")
def rows(state) -> list[dict]:
    bound = {
        "caption_words": ("caption", "caption_words"),
        "min_side": ("look", "min_side"),
        "aspect_ratio": ("look", "aspect_ratio"),
        "luma_std": ("look", "luma_std"),
        "keep": ("subset", "keep"),
    }
    shards = stored(state, "pool", bound)
    return [row for i in range(len(shards)) for row in shards.table(i).to_pylist()]


def broken_by(row: dict, lowest: float) -> tuple[int, ...]:
    """The places of the rules that a row breaks; without a value it breaks none."""
    names = ("caption_words", "min_side", "aspect_ratio", "luma_std")
    words, side, aspect, luma = (row[name] for name in names)
    broken = [
        words < 2,
        side is not None and side < 30,
        aspect is not None and aspect > 3,
        luma is not None and luma < lowest,
    ]
    return tuple(np.flatnonzero(broken).tolist())


def test_rows_are_counted_by_every_rule_that_they_break(found, rows):
    texts = [rule.text for rule in found.rules]
    assert texts[:3] == ["caption_words >= 2", "min_side >= 30", "aspect_ratio <= 3"]
    assert texts[3].startswith("top.fraction = 0.8: from ")
    lowest = min(row["luma_std"] for row in rows if row["keep"])
    known = Counter(broken_by(row, lowest) for row in rows)
    assert {of.rules: of.rows for of in found.broken} == known
    assert [of.rows for of in found.broken] == sorted(known.values(), reverse=True)
    for place, rule in enumerate(found.rules):
        assert rule.rows == sum(n for of, n in known.items() if place in of) > 0
        assert rule.alone == known[(place,)]
    assert max(map(len, known)) > 1


def test_the_first_rule_that_rows_break_is_the_cause_that_the_funnel_counts(found, state):
    (end,) = funnel(state).ends
    assert (found.rows, found.free_kept) == (end.rows, end.kept) == (ROWS, end.kept)
    causes = {(cause.stage, cause.reason): cause.rows for cause in end.causes}
    first: Counter = Counter()
    for of in found.broken:
        if of.rules:
            first[min(of.rules)] += of.rows
    for place, rule in enumerate(found.rules):
        reason = "top:luma_std" if rule.text.startswith("top.") else rule.text
        assert first[place] == causes[rule.stage, reason]
    free = next(of.rows for of in found.broken if not of.rules)
    named = sum(first.values())
    assert free == end.kept + sum(causes.values()) - named > end.kept  # some pictures are broken


def test_numbers_are_correlated_over_the_rows_that_have_both(found, rows):
    assert len(found.pairs) == 6
    for pair in found.pairs:
        both = [(row[pair.a], row[pair.b]) for row in rows]
        both = [two for two in both if None not in two]
        assert pair.rows == len(both)
        assert pair.r == pytest.approx(np.corrcoef(np.transpose(both))[0, 1])
    strength = [abs(pair.r) for pair in found.pairs]
    assert strength == sorted(strength, reverse=True)


def test_quantiles_of_the_pool_of_the_kept_and_of_groups_are_those_of_the_rows(found, rows):
    assert found.sampled == ROWS
    for spread in found.spreads:
        there = [row for row in rows if row[spread.name] is not None]
        pool = [row[spread.name] for row in there]
        kept = [row[spread.name] for row in there if row["keep"]]
        assert spread.pool == pytest.approx(np.quantile(pool, QUANTILES))
        assert spread.kept == pytest.approx(np.quantile(kept, QUANTILES))
    side = [spread.name for spread in found.spreads].index("min_side")
    (none, *ranges) = sorted(found.by["size"], key=lambda of: of.name or "")
    assert none.numbers[side] is None
    assert {of.name for of in ranges} == {"below 32 px", "32 to 63 px", "64 to 127 px"}
    small = next(of for of in ranges if of.name == "below 32 px")
    assert (small.rows, small.numbers[side]) == (
        sum(row["min_side"] == 20 for row in rows),
        (20.0,) * len(QUANTILES),
    )


def test_pearson_over_shards_with_gaps_is_that_of_all_rows_far_from_zero_too():
    rng = np.random.default_rng(0)
    number_CN = rng.standard_normal((4, 3000))
    number_CN[1] += 0.5 * number_CN[0]
    number_CN[2] = 1e7 - number_CN[1] + 0.1 * number_CN[2]
    number_CN[3] = 0.1  # the same of every row
    number_CN[:3][rng.random((3, 3000)) < 0.3] = np.nan
    number_CN[1, :500] = np.nan  # of a whole shard
    moments = Moments(4)
    for start in range(0, 3000, 500):
        moments.count(number_CN[:, start : start + 500])
    moments.count(np.zeros((4, 0)))
    for a, b in combinations(range(3), 2):
        both_N = ~np.isnan(number_CN[a]) & ~np.isnan(number_CN[b])
        known = np.corrcoef(number_CN[a, both_N], number_CN[b, both_N])[0, 1]
        assert moments.pair(a, b) == (pytest.approx(known, abs=1e-9), both_N.sum())
        assert moments.pair(b, a)[0] == pytest.approx(known, abs=1e-9)
    assert [moments.pair(i, 3)[0] for i in range(3)] == [None] * 3
    assert Moments(2).pair(0, 1) == (None, 0)


def test_sets_of_rules_add_up_over_shards_and_pairs_are_told_from_them():
    rng = np.random.default_rng(1)
    broken_RN = rng.random((5, 400)) < 0.3
    rule_counts = RuleCounts()
    for part in np.split(broken_RN, 4, axis=1):
        rule_counts.count(list(part))
    assert sum(of.rows for of in rule_counts.sets()) == 400
    for a in range(5):
        others_N = np.delete(broken_RN, a, axis=0).any(axis=0)
        assert rule_counts.rows[1 << a] == (broken_RN[a] & ~others_N).sum()
        for b in range(5):
            assert rule_counts.both(a, b) == (broken_RN[a] & broken_RN[b]).sum()
    RuleCounts().count([])
    assert RuleCounts().sets() == ()


def test_of_many_rows_a_sample_by_hash_gives_the_quantiles_and_all_are_counted(monkeypatch):
    monkeypatch.setattr(relations_, "SAMPLED", 1000)
    values = np.random.default_rng(2).standard_normal(20_000)
    column = ScoreColumn("score", ("score", "score"), is_whole=False)
    uids = [i.to_bytes(16, "big") for i in range(20_000)]

    def related(parts: int):
        relation_counts = RelationCounts([column], [], 20_000, seed=0, end="best")
        for at in np.split(np.arange(20_000), parts):
            table = pa.table({"uid": pa.array([uids[i] for i in at], pa.binary(16))})
            number = pa.chunked_array([values[at]])
            named = pa.chunked_array([pa.array(np.where(at % 2, "a", "b")).dictionary_encode()])
            relation_counts.count(table, [number], {"language": named}, values[at] > 0)
        return relation_counts.relations()

    once = related(1)
    assert once == related(8)
    assert 850 < once.sampled < 1150
    assert once.free_kept == (values > 0).sum()
    (spread,) = once.spreads
    assert spread.pool == pytest.approx(quantiles(values), abs=0.2)
    assert min(spread.kept) > 0
    assert sum(of.rows for of in once.by["language"]) == once.sampled
    assert (once.rules, once.broken, once.pairs) == ((), (), ())


def test_a_pool_of_no_rows_has_none_of_it():
    column = ScoreColumn("score", ("score", "score"), is_whole=False)
    relation_counts = RelationCounts([column], [], 0, seed=0, end="best")
    number, named = (pa.chunked_array([], type) for type in (pa.float32(), pa.string()))
    relation_counts.count(pa.table({"uid": []}), [number], {"language": named}, np.zeros(0, bool))
    found = relation_counts.relations()
    assert (found.rows, found.sampled, found.by, found.broken) == (0, 0, {}, ())
    assert [(of.pool, of.kept) for of in found.spreads] == [(None, None)]


def planned_rules(state, where: str) -> list[str]:
    """The rules of a `select.where` over the drawn pool, which does not run."""
    stages = {name: state.plan.recipe.stages[name] for name in ("pool", "caption")}
    stages["few"] = {"uses": "select.where", "from": "caption", "where": where}
    plan = make_plan(Recipe(name="few", path="few.yaml", seed=0, stages=stages))
    return [rule.text for rule in rules(SimpleNamespace(plan=plan), "few", [])]


def test_conditions_that_are_long_to_read_are_left_out(state):
    said = "caption_words >= 2 AND text <> 'a'"
    assert planned_rules(state, said) == ["caption_words >= 2", "text <> 'a'"]
    assert planned_rules(state, f"{said} AND image IS NOT NULL") == planned_rules(state, said)


def test_a_condition_is_broken_where_its_opposite_holds():
    rows = pa.table({"a": [1.0, 3.0, float("nan"), None], "b": ["x", "y", None, "x"]})
    for text in ("a > 2", "NOT (a > 2 OR b = 'x')", "a IS NULL", "sqrt(a - 2) > 0 OR b = 'y'"):
        (condition,), (opposite,) = conjuncts(text), conjuncts(f"NOT ({text})")
        holds = truth(opposite, as_frame(rows)).fill_null(False)
        assert condition.broken(rows).tolist() == holds.to_list(), text
