"""What k-means costs on paper: by hand on a small pool, and as docs/clusters.md has it."""

from pathlib import Path

import pytest

from tests.benchmarks.kmeans_plan import PLANS, UNITS, Plan

DOCS = Path(__file__).parents[1] / "docs" / "clusters.md"
SMALL = {"rows": 100, "width": 3, "clusters": 8, "rounds": 5, "train_fraction": 0.5}


def test_one_level_by_hand():
    plan = Plan(**SMALL)
    # 50 rows beside 8 centres in each of 5 rounds, then 100 rows twice.
    assert plan.products == 8 * (5 * 50 + 2 * 100)
    assert plan.flop == 2 * 3 * plan.products
    assert plan.pool_bytes == 100 * 3 * 4
    assert plan.scratch_bytes == (3 + 4 * 0.5) * plan.pool_bytes
    assert plan.shuffled_bytes == 0
    assert plan.summed_bytes == UNITS * 8 * 3 * 8
    assert plan.worker_bytes == 8 * 3 * (4 + 2 + 8 + 8)


def test_two_levels_by_hand():
    plan = Plan(**SMALL, parents=2)
    parents = 2 * ((5 + 2 + 2) * 50 + 2 * 100)
    children = 4 * (5 * 50 + 8 * (2 * 50 + 2 * 100))
    assert plan.products == parents + children
    assert plan.scratch_bytes == (3 + 8 * 0.5) * plan.pool_bytes
    assert plan.shuffled_bytes == 3 * 2 * 50 * 3 * 4
    assert plan.summed_bytes == UNITS * 2 * 3 * 8
    assert plan.worker_bytes == pytest.approx(2 * 25 * 3 * 8)  # a parent's 25 rows, twice as many


def test_the_docs_have_its_hours():
    docs = DOCS.read_text()
    one, by_parents, million, million_by_parents = (f"{plan.core_hours:,.0f}" for plan in PLANS)
    assert f"take {one} core-hours in one level and {by_parents} with 320 parents" in docs
    assert f"a million {million} and {million_by_parents} with 1,000 parents" in docs
