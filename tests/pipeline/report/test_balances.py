"""The report's page on balancing: the curve, both ends of it, languages."""

import json

import numpy as np
import pytest

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.ledger.findings.balances import balances, ranked
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import load_recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.report.balances import balance_section, curve
from clipmill.pipeline.report.build import report
from clipmill.pipeline.run_folder.state import RunState
from tests.parsed import Page

ENTRIES = ["circle", "square", "Kreis", "icon", "<b>bold</b>", "sun", "cercle", "rouge", "nowhere"]
RECIPE = """
seed: 0
stages:
  pool:     {{uses: ingest.datacomp, path: {pool}/metadata, shard_rows: 50}}
  lang:     {{uses: annotate.language, from: pool}}
  matched:  {{uses: annotate.concepts, from: pool, concepts: {list}}}
  balanced: {{uses: select.balance, from: [matched, lang], concepts: {list}, t: 4}}
"""


@pytest.fixture(scope="module")
def balanced(generated, tmp_path_factory) -> RunState:
    folder = tmp_path_factory.mktemp("balanced")
    (folder / "list.json").write_text(json.dumps(ENTRIES))
    text = RECIPE.format(pool=generated, list=folder / "list.json")
    (folder / "it.yaml").write_text(text)
    plan = make_plan(load_recipe(str(folder / "it.yaml")))
    outcome = run_plan(plan, Storage(str(folder / "run")), LocalExecutor(0), Lines())
    assert outcome.complete, outcome.stopped
    return outcome.state


def test_the_ends_are_the_most_and_the_least_frequent_concepts_that_stand_in_a_caption(balanced):
    (found,) = balances(balanced)
    heaviest = [concept.count for concept in found.heaviest]
    rarest = [concept.count for concept in found.rarest]
    assert heaviest == sorted(heaviest, reverse=True)
    assert rarest == sorted(rarest)
    assert rarest[0] > 0
    assert found.entries == len(ENTRIES)
    assert found.met < len(ENTRIES)
    for end in balance_section(balanced, found)["ends"].values():
        for row in end:
            assert 0 < len(row["samples"]) <= 4
            assert all(row["entry"] in sample["text"] for sample in row["samples"])


def test_languages_add_up_to_the_pool(balanced):
    (found,) = balances(balanced)
    for key in ("rows", "matched", "kept"):
        assert sum(getattr(of, key) for of in found.languages) == getattr(found, key)
    assert all(of.rows >= of.matched >= of.kept for of in found.languages)


def test_the_curve_falls_and_t_is_level():
    chart = curve(ranked(np.array([1000, 10, 0, 100])), ranked(np.array([50, 10, 0, 40])), 30.0)
    assert [line["name"] for line in chart["lines"]] == ["before", "after", "t"]
    before, after, t = (line["dots"] for line in chart["lines"])
    assert [dot["y"] for dot in before] == sorted(dot["y"] for dot in before)
    assert after[0]["y"] > before[0]["y"]
    assert t[0]["y"] == t[1]["y"]
    assert [tick["text"] for tick in chart["y_ticks"]] == ["1", "10", "100", "1000"]
    tenth = [dot["y"] for dot in before][-1]
    assert tenth == next(tick["at"] for tick in chart["y_ticks"] if tick["text"] == "10")


@pytest.mark.parametrize("t", [None, 0.5])
def test_a_curve_of_nothing_is_drawn_all_the_same(t):
    assert ranked(np.zeros(3, np.int64)) == ()
    assert curve((), (), t)["lines"][0]["dots"] == []


def test_the_page_shows_it_and_asks_for_nothing(balanced):
    html = report(balanced)
    page = Page(html)
    assert "Concepts balanced by balanced" in page.text
    assert page.asks_for_nothing()
    assert report(balanced) == html


def test_a_run_without_balancing_has_no_such_page(state, html):
    assert balances(state) == []
    assert "Concepts balanced" not in html
