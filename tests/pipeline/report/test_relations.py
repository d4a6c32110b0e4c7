"""Rules that rows break together and numbers side by side, as the report shows them."""

from dataclasses import replace

import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.selection.relations import (
    Broken,
    GroupSpread,
    Pair,
    Relations,
    RuleRows,
    Spread,
)
from clipmill.pipeline.ledger.selection.survey import survey
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.report.build import report
from clipmill.pipeline.report.ends import MOST_SETS, relation_section
from tests.drawn import ROWS, caption
from tests.parsed import Page

FIVE = (0.0, 2.0, 4.0, 6.0, 8.0)
FOUND = Relations(
    rows=30,
    free_kept=10,
    sampled=30,
    rules=tuple(
        RuleRows(stage="best", text=text, rows=rows, alone=alone)
        for text, rows, alone in (("a > 1", 12, 8), ("b > 1", 0, 0), ("c > 1", 10, 6))
    ),
    broken=(Broken((), 12), Broken((0,), 8), Broken((2,), 6), Broken((0, 2), 4)),
    pairs=(Pair("a", "b", -0.5, 30), Pair("a", "c", None, 0)),
    spreads=(
        Spread(name="a", stage="look", pool=FIVE, kept=(4.0, 5.0, 6.0, 9.0, 10.0)),
        Spread(name="b", stage="look", pool=None, kept=None),
        Spread(name="c", stage="look", pool=FIVE, kept=None),
        Spread(name="d", stage="look", pool=(3.0,) * 5, kept=(3.0,) * 5),
    ),
    by={
        "language": (
            GroupSpread(None, 30, ((-5.0, 0.0, 1.0, 50.0, 60.0), None, None, FIVE)),
            GroupSpread("en", 20, (FIVE,) * 4),
            GroupSpread("few", 19, (FIVE,) * 4),
        ),
        "source": (GroupSpread("one", 30, (FIVE,) * 4), GroupSpread("other", 1, (FIVE,) * 4)),
    },
)


def test_rules_that_rows_break_are_numbered_and_each_set_says_which():
    overlap = relation_section(FOUND)["overlap"]
    assert [(rule["number"], rule["text"]) for rule in overlap["rules"]] == [
        (1, "a > 1"),
        (2, "c > 1"),
    ]
    assert [(line["breaks"], line["rows"], line["share"]) for line in overlap["sets"]] == [
        ([True, False], 8, 1.0),
        ([False, True], 6, 0.75),
        ([True, True], 4, 0.5),
    ]
    counted = [overlap[name] for name in ("any", "several", "free", "kept", "else", "unbroken")]
    assert counted == [18, 4, 12, 10, 2, 1]


def test_the_sets_past_the_largest_are_told_together():
    many = tuple(Broken((0, 2), 100 - at) for at in range(MOST_SETS + 3))
    overlap = relation_section(replace(FOUND, broken=many))["overlap"]
    assert len(overlap["sets"]) == MOST_SETS
    assert overlap["more"] == {"sets": 3, "rows": 88 + 87 + 86}


def test_strips_lie_on_one_scale_and_what_is_past_it_at_its_ends():
    found = relation_section(FOUND)
    first, last = found["spreads"]
    assert (first["name"], last["name"]) == ("a", "c")  # b has no value
    assert found["alike"] == ["d"]
    assert first["pool"]["tail"] == (0.0, 80.0)
    assert (first["pool"]["half"], first["pool"]["middle"]) == ((20.0, 40.0), 40.0)
    assert (first["kept"]["half"], first["kept"]["middle"]) == ((50.0, 40.0), 60.0)
    assert (last["pool"]["half"], last["kept"]) == ((25.0, 50.0), None)
    assert list(found["by"]) == ["language"]  # of a source only one has rows enough
    group, other = found["by"]["language"]
    assert (group["name"], other["name"], len(group["strips"])) == ("(none)", "en", 2)
    assert group["strips"][0]["half"] == (0.0, 100.0)
    assert group["strips"][1] is None
    (pair,) = found["pairs"]
    assert (pair["left"], pair["width"]) == (25.0, 25.0)


def test_one_rule_overlaps_with_none_and_nothing_gives_no_section():
    one = replace(FOUND, rules=FOUND.rules[:2])
    assert relation_section(one)["overlap"] is None
    assert relation_section(replace(one, spreads=(), by={})) is None


def test_the_page_has_the_counts_of_the_ledger(state, html):
    found = survey(state, "subset").relations
    page = Page(html).text
    rules = [of for of in found.broken if of.rules]
    several = sum(of.rows for of in rules if len(of.rules) > 1)
    free = found.rows - sum(of.rows for of in rules)
    said = f"{several} of them more than one. {free} rows break none: {found.free_kept} kept,"
    assert said in page
    assert f"{rules[0].rows} ●" in page or f"● {rules[0].rows}" in page
    pair = found.pairs[0]
    assert f"{pair.a}, {pair.b}" in page


@pytest.mark.parametrize("sampled", [20, 60])
def test_a_sample_is_said_to_be_one(sampled, state, monkeypatch):
    monkeypatch.setattr("clipmill.pipeline.ledger.selection.relations.SAMPLED", sampled)
    is_said = "drawn at random. all rows" in Page(report(state)).text
    assert is_said is (sampled < 60)


def test_a_rule_of_markup_is_text(state, tmp_path):
    stages = {name: state.plan.recipe.stages[name] for name in ("pool", "caption")}
    where = "caption_words >= 2 AND text NOT LIKE '%<script>%'"
    stages["few"] = {"uses": "select.where", "from": "caption", "where": where}
    plan = make_plan(Recipe(name="few", path="few.yaml", seed=0, stages=stages))
    run = run_plan(plan, Storage(str(tmp_path / "run")), LocalExecutor(0), Lines()).state
    html = report(run)
    assert "<script" not in html
    rules = {rule.text: rule.rows for rule in survey(run, "few").relations.rules}
    assert list(rules.values()) == [
        sum(len(caption(row).split()) < 2 for row in range(ROWS)),
        sum("<script>" in caption(row) for row in range(ROWS)),
    ]
    for text in rules:
        assert text in Page(html).text


def test_names_of_markup_are_text(state, monkeypatch):
    markup = "<img src=x onerror=alert(1)>"
    rules = tuple(replace(rule, stage=markup, text=markup) for rule in FOUND.rules)
    spreads = tuple(replace(spread, name=markup, stage=markup) for spread in FOUND.spreads)
    by = {markup: tuple(replace(of, name=markup) for of in FOUND.by["language"])}
    pairs = (Pair(markup, markup, 1.0, 30),)
    hostile = replace(FOUND, rules=rules, spreads=spreads, by=by, pairs=pairs)
    monkeypatch.setattr(
        "clipmill.pipeline.report.ends.relation_section", lambda _: relation_section(hostile)
    )
    page = Page(html := report(state))
    assert page.asks_for_nothing()
    assert markup not in html
    assert page.text.count(markup) > 10
